"""Generation with a trained model, step by step on its recurrent state."""
