"""The model card of an export: what the model is, what it was trained on, what that cost and how good it is."""

from typing import Any

from rcdist.checkpoint.manifest import Manifest
from rcdist.config import JobConfig
from rcdist.model.cost import count_parameters
from rcdist.tracking.provenance import collect_tags, redact

_MEASURED = {
    "eval/loss_nats": "held-out loss, nats per token",
    "eval/perplexity": "perplexity",
    "eval/bits_per_byte": "bits per byte",
}


def write_card(config: JobConfig, manifest: Manifest, use: str) -> str:
    """Return the README.md of an export.

    Args:
        config: of the run.
        manifest: of the checkpoint.
        use: how the folder is used: lines of code or commands.
    """
    counts = count_parameters(config.architecture)
    tokens = manifest.step * config.train.global_batch_tokens
    tags = collect_tags()
    rows: dict[str, Any] = {
        "plan": f"`{config.reservoir.plan}`",
        "shape": f"{config.model.num_layers} blocks of width {config.model.width}, inner width "
        f"{config.model.glu_width}, {config.model.vocab_size:,} ids",
        "parameters stored": f"{counts.stored:,}",
        "parameters trained": f"{counts.trained:,}",
        "parameters frozen": f"{counts.frozen_unique:,} ({counts.frozen:,} as applied)",
        "text": ", ".join(redact(entry) for entry in config.data.train),
        "held-out text": ", ".join(redact(entry) for entry in config.data.validation),
        "digest of the training tokens": f"`{manifest.data_digest}`",
        "steps, tokens": f"{manifest.step:,} steps, {tokens:,} tokens in windows of {config.data.seq_len}",
        "device seconds, money": f"{manifest.ledger.device_s:,.0f} s, {manifest.ledger.usd:.6g} USD",
        "energy": f"{manifest.ledger.kwh:.6g} kWh",
    }
    newest: dict[str, float] = {}
    for record in manifest.state.records:
        newest |= record
    rows |= {title: f"{newest[name]:.4f}" for name, title in _MEASURED.items() if name in newest}
    rows["made with"] = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    if "mlflow.source.git.commit" in tags:
        rows["exported by commit"] = f"`{tags['mlflow.source.git.commit']}`"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""# {config.name}

A language model without matrix multiplication: ternary weights, an element-wise gated recurrence in place of attention
(Zhu et al. 2024, arXiv:2406.02528), some matrices frozen at random values as the plan says.

| | |
|---|---|
{table}

## Use

{use}
"""
