"""Memory that a process holds while it decodes, above its imports' own: our packed folder beside a Llama's."""

import gc
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcdist.benchmark.steps import build_llama, build_ours
from rcdist.config import JobConfig, ModelConfig
from rcdist.data.tokenizer import Tokenizer
from rcdist.inference.decoder import Decoder
from rcdist.inference.folder import write_packed
from rcdist.inference.load import load_model

CPU = torch.device("cpu")
_SMALL = {"num_layers": 1, "width": 64, "glu_width": 64, "vocab_size": 300}


def measure_residence(model: ModelConfig, counts: tuple[int, ...], with_llama: bool) -> dict[str, int]:
    """Return bytes by what decodes: ours after each count of tokens, a Llama in bfloat16 after the first.

    Each in a process of its own, which has loaded a tiny model of the same kind before: what its libraries need of
    memory is not counted.
    """
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for part, shape in (("small", ModelConfig(**_SMALL)), ("whole", model)):
            # Both are what training in bfloat16 leaves.
            config = JobConfig(model=shape.model_dump(), reservoir={"plan": "T"}, train={"precision": "bf16"})
            folder = Path(name) / "ours" / part
            folder.mkdir(parents=True)
            ours = build_ours(shape, config.reservoir, CPU, torch.bfloat16)
            write_packed(folder, ours, Tokenizer(None), config, 0, "")
            if with_llama:
                build_llama(shape, CPU, torch.bfloat16).save_pretrained(Path(name) / "llama" / part)  # type: ignore[operator]
        for count in counts:
            found[f"ours after {count}"] = _in_a_process("ours", Path(name) / "ours", count)
        if with_llama:
            found["llama_bf16"] = _in_a_process("llama", Path(name) / "llama", counts[0])
    return found


def _in_a_process(kind: str, folder: Path, count: int) -> int:
    command = [sys.executable, "-m", "rcdist.benchmark.residence", kind, str(folder), str(count)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _decode_ours(folder: Path, count: int) -> object:
    loaded = load_model(folder, CPU)
    decoder = Decoder(loaded.model, 1)
    for _ in range(count):
        decoder.step()
    return decoder


def decode_llama(model: nn.Module, first_B: Tensor, count: int) -> Tensor:
    """Return the last of `count` tokens that a Llama of transformers makes greedily, with keys and values kept."""
    token_B = first_B
    kept: dict[str, Any] = {}
    for _ in range(count):
        out = model(input_ids=token_B[:, None], use_cache=True, **kept)
        name = "cache" if "cache" in out else "past_key_values"  # before transformers 5.20 or so
        kept = {name: out[name]}
        token_B = out.logits[:, -1].argmax(-1)
    return token_B


def _decode_llama(folder: Path, count: int) -> object:
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        decode_llama(model, torch.zeros(1, dtype=torch.int64), count)
    return model


def _resident() -> int:
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


def main(kind: str, folder: str, count: str) -> None:
    """Print the bytes that decoding adds."""
    decode = _decode_ours if kind == "ours" else _decode_llama
    decode(Path(folder) / "small", 4)
    before = _resident()
    kept = decode(Path(folder) / "whole", int(count))
    print(_resident() - before)
    del kept


if __name__ == "__main__":
    main(*sys.argv[1:])
