"""rcdist: pre-training of reservoir MatMul-free language models on Ray."""

__version__ = "0.1.0"
