"""A run like another one, with some keys changed and other seeds: what trials and arms are made of."""

from collections.abc import Mapping
from typing import Any

from rcdist.config.cli import config_from_dict
from rcdist.config.job import JobConfig
from rcdist.errors import ConfigError


def vary(config: JobConfig, name: str, settings: Mapping[str, Any], seed: int = 0) -> JobConfig:
    """Return a run's settings under another name, with some changed.

    Args:
        config: of a run, or of what is made of runs; what a run has not is left out.
        name: of the new run.
        settings: values by dotted key; a key may lead into a map by letter (`reservoir.topology.G`).
        seed: is added to the seeds of weights, data order and reservoir.

    Raises:
        ConfigError: there is no such key, or the values do not go together.
    """
    tree = config.model_dump(mode="json", include=set(JobConfig.model_fields))
    for key, value in settings.items():
        *sections, last = key.split(".")
        node: Any = tree
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise ConfigError(key, value, f"{section} is one value, not a map", f"Set {section} itself")
        node[last] = value
    tree["name"] = name
    tree["cluster"]["num_workers"] = tree["cluster"]["num_workers"] or 1
    if seed:
        _add_seed(tree, seed)
    return config_from_dict(tree)


def _add_seed(tree: dict[str, Any], seed: int) -> None:
    tree["seed"] += seed
    tree["data"]["seed"] += seed
    known = tree["reservoir"]["seed"]
    shifted: int | Mapping[str, int] = (
        {letter: value + seed for letter, value in known.items()} if isinstance(known, dict) else known + seed
    )
    tree["reservoir"]["seed"] = shifted
