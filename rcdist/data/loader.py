"""Placeholder for the loader."""
from dataclasses import dataclass
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    tokens_BT: Tensor
    targets_BT: Tensor
    starts_BT: Tensor
    weights_BT: Tensor
