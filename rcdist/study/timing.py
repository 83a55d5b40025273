"""What an arm takes over its baseline: a training step, prefill and decode, both alternately, alone on the machine."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from rcdist.config import Architecture, JobConfig

if TYPE_CHECKING:
    import torch

    from rcdist.model.lm import LanguageModel
    from rcdist.ops.replay import Replay
    from rcdist.ops.weights import WeightsQuantisedOnce

KINDS = ("train", "prefill", "decode")
_WINDOWS_ON_CPU = 4
_DECODED = 32


def measure_times(arm: JobConfig, baseline: JobConfig, pairs: int) -> tuple[dict[str, float], str, str]:
    """Time an arm against its baseline; nothing else may run meanwhile.

    Training steps and prefill are of the arm's micro-batch (4 windows on a CPU); decoding is of one sequence, 32 tokens
    of it, packed. On a GPU both are in the arm's precision and every pass is a graph; on a CPU training and prefill
    are in the dtype in which a step is faster, decoding in float32.

    Args:
        arm: settings of a run.
        baseline: of what it is compared with, as many tokens per window; the same settings: only seconds are new.
        pairs: of interleaved measurements.

    Returns:
        By kind of pass `ratio` (median), `low` and `high` (95 %, bootstrap) and `seconds` per token of the arm; the
        kind of device (cuda, cpu); its name.
    """
    import torch

    from rcdist.benchmark.pairs import describe_device, ratio
    from rcdist.ops.host import prepare_host
    from rcdist.train.deepspeed_config import max_windows

    is_gpu = torch.cuda.is_available() and arm.cluster.use_gpu is not False
    device = torch.device("cuda" if is_gpu else "cpu")
    prepare_host(None if is_gpu else os.cpu_count())
    windows = max_windows(arm, if_auto=8)
    shape = (windows if is_gpu else min(windows, _WINDOWS_ON_CPU), arm.data.seq_len)
    arms = {"arm": arm.architecture}
    if baseline.architecture != arm.architecture:
        arms["baseline"] = baseline.architecture
    dtype = torch.bfloat16 if arm.train.precision == "bf16" else torch.float32
    seconds = _time_training(arms, shape, pairs, device, dtype if is_gpu else None)
    seconds["decode"] = _time_decoding(arms, pairs, device, dtype if is_gpu else torch.float32)
    tokens = {"train": shape[0] * shape[1], "prefill": shape[0] * shape[1], "decode": _DECODED}
    values: dict[str, float] = {}
    for kind, times in seconds.items():
        found = ratio(times["arm"], times.get("baseline", times["arm"]))
        values |= {
            f"{kind}/{name}": found[key] for name, key in (("ratio", "median"), ("low", "low"), ("high", "high"))
        }
        values[f"{kind}/seconds"] = sorted(times["arm"])[pairs // 2] / tokens[kind]
    return values, device.type, describe_device(device)["device"]


def _time_training(
    arms: Mapping[str, Architecture],
    shape: tuple[int, int],
    pairs: int,
    device: "torch.device",
    dtype: "torch.dtype | None",
) -> dict[str, dict[str, list[float]]]:
    """Return seconds of training steps and of prefills by arm."""
    import torch

    from rcdist.benchmark.pairs import measure_pairs
    from rcdist.benchmark.steps import build_ours, faster_dtype, random_tokens, training_step
    from rcdist.ops.replay import Replay
    from rcdist.ops.weights import WeightsQuantisedOnce

    replay = Replay(device)
    steps: dict[str, Callable[[], object]] = {}
    prefills: dict[str, Callable[[], object]] = {}
    for name, arm in arms.items():
        tokens = random_tokens(arm.model, *shape, device)
        make = partial(build_ours, arm.model, arm.reservoir, device)
        built = make(dtype or faster_dtype("ours", make, tokens))
        steps[name] = training_step("ours", built, tokens, replay)
        prefills[name] = partial(_prefill, replay, name, WeightsQuantisedOnce(), built, tokens[:, :-1])
    found = {"train": measure_pairs(steps, pairs)}
    with torch.no_grad():
        return found | {"prefill": measure_pairs(prefills, pairs)}


def _prefill(
    replay: "Replay", name: str, scope: "WeightsQuantisedOnce", model: "LanguageModel", tokens: "torch.Tensor"
) -> None:
    with scope:
        replay.run(("prefill", name), lambda: model.prefill(tokens, last_only=True))


def _time_decoding(
    arms: Mapping[str, Architecture], pairs: int, device: "torch.device", dtype: "torch.dtype"
) -> dict[str, list[float]]:
    """Return seconds of decoding one sequence, greedily, by arm."""
    import torch

    from rcdist.benchmark.decoding import build_packed, decode_greedily
    from rcdist.benchmark.pairs import measure_pairs
    from rcdist.inference.decoder import Decoder

    first = torch.zeros(1, dtype=torch.long, device=device)
    with torch.inference_mode():
        works = {
            name: partial(
                decode_greedily, Decoder(build_packed(arm.model, arm.reservoir, device, dtype), 1), first, _DECODED
            )
            for name, arm in arms.items()
        }
        return measure_pairs(works, pairs)
