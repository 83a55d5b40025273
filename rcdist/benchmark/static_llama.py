"""The rival of decoding on a GPU: a Hugging Face Llama with a static cache, its step compiled and captured."""

# Shapes: B sequences, V vocabulary.

import inspect

import torch
from torch import Tensor, nn

from rcdist.ops.replay import Replay

_TRIED = 3
"""Steps before the one that is captured: what the cache becomes at its first use is compiled once more."""


class StaticLlama:
    """Make tokens greedily by a step that is one CUDA graph, as transformers does with `cache_implementation="static"`.

    Args:
        llama: in evaluation mode, on a GPU.
        batch: B.
        length: tokens that the cache has room for.
    """

    def __init__(self, llama: nn.Module, batch: int, length: int) -> None:
        from transformers import StaticCache

        device = next(llama.parameters()).device
        names = inspect.signature(llama.forward).parameters
        self._cache = StaticCache(config=llama.config, max_cache_len=length)
        # Its name since transformers 5.20 or so, and before.
        self._inputs = {"cache" if "cache" in names else "past_key_values": self._cache, "use_cache": True}
        self._step = torch.compile(llama, dynamic=False)
        self._replay = Replay(device)
        self._token_B1 = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self._position_B1 = torch.zeros(batch, 1, dtype=torch.int64, device=device)

        with torch.inference_mode():
            for _ in range(_TRIED):
                self._work()

    @torch.inference_mode()
    def decode(self, first_B: Tensor, count: int) -> Tensor:
        """Return the last of `count` tokens from the first one on."""
        self._cache.reset()
        self._position_B1.zero_()
        self._token_B1.copy_(first_B[:, None])
        for _ in range(count):
            self._replay.run("step", self._work)
        return self._token_B1[:, 0].clone()

    def _work(self) -> None:
        logits_B1V = self._step(input_ids=self._token_B1, position_ids=self._position_B1, **self._inputs).logits
        self._token_B1.copy_(logits_B1V[:, -1:].argmax(-1))
        self._position_B1 += 1
