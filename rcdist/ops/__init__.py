"""Pure functions on tensors: a reference in PyTorch for each, and fast twins in C++ and Triton."""

from rcdist.ops import processor  # noqa: F401  first: it limits torch's libraries where a variable asks for it
