"""What lies on disk of a run's progress: written, found, proved, converted and retired; knows nothing of training."""
