"""Pure functions on tensors: the reference arithmetic of the model, in plain PyTorch."""
