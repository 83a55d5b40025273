"""What runs in a training worker: the loop, the engine, the received reservoir, checkpoints and evaluation."""
