"""What processes of the reservoir tests run: a member of the family, and one bank on two nodes inside Ray Train."""

import itertools
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rcdist.config import JobConfig, ReservoirConfig
from rcdist.model.bitlinear import FrozenLinear
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import ReservoirBank, build_bank
from rcdist.train.broadcast import receive_bank
from rcdist.train.wire import FrozenValues, WireMeter
from tests.train.zero_worker import SEQ_LEN, WINDOWS, micro_batch, windows

FAMILY_STEPS = 10

_PLACEMENTS = {
    "post_scan": {"plan": "T c+r@a", "placement": "post_scan"},
    "recurrent": {"plan": "T c+r@a", "placement": "recurrent"},
    "reset_gate": {"plan": "T c+r@a", "placement": "reset_gate"},
    "token_shift": {"plan": "T c+r@a", "placement": "token_shift"},
    "gate-g": {"plan": "T g@a", "placement": "gate", "gate": "g"},
    "gate-f": {"plan": "T f@a", "placement": "gate", "gate": "f"},
}


def list_family() -> dict[str, dict[str, Any]]:
    """Name every legal placement x topology x output gate, and fixed leak rates with each placement."""
    family = {}
    topologies, gates = ("dense", "block", "hadamard", "ring", "identity"), ("full", "tied", "none")
    for name, topology, gate in itertools.product(_PLACEMENTS, topologies, gates):
        if name != "gate-g" or gate == "full":  # there is no W_g to be a reservoir otherwise
            family[f"{name}-{topology}-{gate}"] = _PLACEMENTS[name] | {"topology": topology, "output_gate": gate}
    for name in _PLACEMENTS:
        if name != "gate-f":
            family[f"{name}-leak"] = _PLACEMENTS[name] | {"leak_rate": 0.3}
    return family


def family_job(reservoir: dict[str, Any], stage: int = 2) -> JobConfig:
    """Return a run on a small model whose widths suit every topology."""
    return JobConfig(
        model={"num_layers": 2, "width": 32, "glu_width": 64, "vocab_size": 64},
        reservoir={"block_size": 8} | reservoir,
        data={"seq_len": SEQ_LEN},
        train={"global_batch_tokens": WINDOWS * SEQ_LEN, "micro_batch_size": 1, "zero_stage": stage},
    )


def train_steps(config: JobConfig, model: LanguageModel, wire: WireMeter, steps: int) -> dict[str, Any]:
    """Train a model under ZeRO on this process group; return losses, and bytes per step of this rank."""
    with wire.installed():
        from rcdist.train.engine import Engine

        rank, world_size = dist.get_rank(), dist.get_world_size()
        engine = Engine(model, config, world_size=world_size, device=torch.device("cpu"))
        losses, sent = [], []
        wire.take()
        wire.looks_inside = True
        for step in range(steps):
            rows = windows(step)[rank::world_size]
            batches = [micro_batch(row[None]) for row in rows]
            result = engine.train_step(batches, WINDOWS * SEQ_LEN, learning_rate=3e-3, weight_decay=0.1)
            assert result.applied
            losses.append(result.loss_nats)
            sent.append(asdict(wire.take()))
    return {"losses": losses, "sent": sent}


def train_member(name: str) -> dict[str, Any]:
    """Train a member of the family for ten steps on this process group."""
    config = family_job(list_family()[name])
    bank = build_bank(config.architecture)
    model = LanguageModel(config.architecture, bank, config.seed)
    return train_steps(config, model, WireMeter(bank.buffers()), FAMILY_STEPS)


BROADCAST = ReservoirConfig(plan="fcgoGUD@a", topology="dense")


def broadcast_job(stage: int) -> JobConfig:
    """Return a run whose bank is large beside everything else that is sent at the start: 3.2 million weights."""
    return JobConfig(
        model={"num_layers": 2, "width": 512, "glu_width": 1408, "vocab_size": 64},
        reservoir=BROADCAST.model_dump(),
        data={"seq_len": SEQ_LEN},
        train={"global_batch_tokens": WINDOWS * SEQ_LEN, "micro_batch_size": 1, "zero_stage": stage},
    )


class ParameterLinear(nn.Module):
    """Hold a frozen matrix as an ordinary parameter without gradient, as a user without a bank would."""

    def __init__(self, layer: FrozenLinear, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight, self.gain = weight, layer.gain

    def forward(self, handle: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        """Return the same product, differentiated by autograd."""
        tokens = handle + (values * scale - handle).detach()
        return nn.functional.linear(tokens, self.weight) * self.gain


def hold_as_parameters(model: LanguageModel, bank: ReservoirBank) -> int:
    """Replace every frozen layer by one over a parameter; return the bytes of the distinct matrices."""
    shared = {
        spec.key: nn.Parameter(bank.matrix(spec.key).float() * spec.scale, requires_grad=False) for spec in bank.specs
    }
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, FrozenLinear):
                setattr(module, name, ParameterLinear(child, shared[child.key]))
    return sum(weight.numel() * weight.element_size() for weight in shared.values())


def _mapping_of(address: int) -> str:
    """Return the name of the mapping of this process that an address lies in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
    return ""


def broadcast_loop(payload: dict[str, Any]) -> None:
    """Receive one bank, train at stages 1 to 3 with it and at stage 3 with parameters; every rank writes a file."""
    import ray

    torch.set_num_threads(1)
    config = broadcast_job(1)
    packed = ray.get(payload["bank_ref"])
    found: dict[str, Any] = {
        "node": ray.get_runtime_context().get_node_id(),
        "mapping": re.sub(r"\d+", "", _mapping_of(packed.data.__array_interface__["data"][0])),
        "writable": bool(packed.data.flags.writeable),
    }
    for stage in (1, 2, 3):
        config = broadcast_job(stage)
        bank, found["arrival"] = receive_bank(config, payload["bank_ref"], payload["bank_digest"])
        model = LanguageModel(config.architecture, bank, config.seed, separately=stage == 3)
        found[f"stage {stage}"] = train_steps(config, model, WireMeter(bank.buffers()), 3)
        found["resident bytes"] = sum(buffer.numel() * buffer.element_size() for buffer in bank.buffers())
    bank, _ = receive_bank(config, payload["bank_ref"], payload["bank_digest"])
    model = LanguageModel(config.architecture, bank, config.seed, separately=True)
    found["parameter bytes"] = hold_as_parameters(model, bank)
    found["known"] = FrozenValues(bank.buffers()).share
    found["parameters"] = train_steps(config, model, WireMeter(bank.buffers()), 3)
    Path(payload["result"], f"{dist.get_rank()}.json").write_text(json.dumps(found))
