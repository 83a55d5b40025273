"""The modules of the model, for one device, and what they cost."""
