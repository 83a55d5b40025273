"""The folder of a search, <storage_path>/sweeps/<name>: what it searches, so that the same name is the same search."""

import json
from pathlib import Path
from typing import Any

from rcdist.errors import ConfigError
from rcdist.storage import read_json, write_file
from rcdist.sweep.settings import SweepConfig
from rcdist.tracking.provenance import redact_tree

FORMAT = 1
"""Raised whenever an older folder could not be continued."""

_MAY_CHANGE = (
    "name",
    "storage_path",
    "tracking",
    "cluster",
    "checkpoint",
    "cost.budget_usd",
    "cost.budget_device_s",
    "train.max_wall_s",
    "data.cache_dir",
    "data.verify_cache",
)
"""Settings of the fixed part on which no trial's result depends."""


class SweepFolder:
    """Read and write what a search is, besides its trials.

    Args:
        config: the search.
    """

    def __init__(self, config: SweepConfig) -> None:
        self.path = config.storage / "sweeps" / config.name
        self._config = config

    @property
    def journal(self) -> Path:
        """Return the file of the trials."""
        return self.path / "trials.jsonl"

    def check(self) -> None:
        """Refuse to continue another search under the same name.

        Raises:
            ConfigError: names the first setting that differs, or the format.
        """
        found = read_json(self.path / "sweep.json")
        if not found:
            if self.journal.exists():
                raise ConfigError(
                    "name", self._config.name, f"{self.path} has trials and no sweep.json", "Choose another name"
                )
            return
        if found.get("format") != FORMAT:
            rule = f"the search in {self.path} is of format {found.get('format')}, this rcdist writes {FORMAT}"
            raise ConfigError("name", self._config.name, rule, "Choose another name, or use the rcdist that began it")
        for key, old, new in _differences("", found["search"], _describe(self._config)):
            rule = f"the search {self._config.name!r} in {self.path} has {old}"
            raise ConfigError(key, new, rule, "Use its value, or choose another name")

    def write(self, **more: Any) -> None:
        """Write down what the search is; `more` is added to what is there already."""
        known = read_json(self.path / "sweep.json")
        content = {**known, "format": FORMAT, "search": _describe(self._config), **more}
        write_file(self.path / "sweep.json", json.dumps(content, indent=1))

    def read(self, key: str) -> Any:
        """Return what was added by `write`, None if it was not."""
        return read_json(self.path / "sweep.json").get(key)


def _describe(config: SweepConfig) -> dict[str, Any]:
    """Return what must be the same for trials to be comparable, and for a sampler to know what it has proposed."""
    tree = redact_tree(config.model_dump(mode="json"))
    for key in _MAY_CHANGE:
        section, _, name = key.partition(".")
        if name:
            tree[section].pop(name)
        else:
            tree.pop(section)
    kept = {name: tree["sweep"][name] for name in ("sampler", "objectives", "cost_from", "seed", "stop_dominated")}
    result: dict[str, Any] = json.loads(json.dumps(tree | {"sweep": kept}))
    return result


def _differences(path: str, before: Any, now: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        rows = [_differences(f"{path}.{key}" if path else key, before.get(key), now.get(key)) for key in keys]
        return [row for found in rows for row in found]
    return [] if before == now else [(path, before, now)]
