"""Read the price table and pick the row of a run's devices."""

import difflib
import math
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from rcdist.config import CostConfig
from rcdist.config.model import Section
from rcdist.errors import ConfigError

CPU_ROW = "laptop-cpu"
"""Row of cost.node_type=auto when the workers have no GPU."""


@dataclass(frozen=True)
class PriceRow:
    """Say what one device of a run costs; it pickles, so that workers receive it.

    Attributes:
        name: row of the price table.
        market: on_demand or spot.
        usd_per_device_hour: price, never zero.
        peak_flops: FLOP/s at best.
        watts: power that energy is computed with.
        source: where the row's numbers are from.
        is_gpu: the device is a GPU; else so many cores.
        memory_bytes: of the device; infinite where the table does not say it.
        devices_per_node: that one link joins.
        link_bytes_per_s, network_bytes_per_s: of one device to others of its node, and to other nodes.
    """

    name: str
    market: str
    usd_per_device_hour: float
    peak_flops: float
    watts: float
    source: str
    is_gpu: bool = True
    memory_bytes: float = math.inf
    devices_per_node: int = 1
    link_bytes_per_s: float = math.inf
    network_bytes_per_s: float = math.inf

    @property
    def usd_per_device_s(self) -> float:
        """Return USD per device second."""
        return self.usd_per_device_hour / 3600


Positive = Annotated[float, Field(gt=0)]


class _TableRow(Section):
    """One row of the YAML file, whose head explains the keys."""

    per: Literal["gpu", "cpu"] = "gpu"
    match: str | None = None
    on_demand: Positive
    spot: Positive
    peak_flops: Positive
    watts: Positive
    memory: Positive | None = None
    devices_per_node: Annotated[int, Field(ge=1)] = 1
    link: Positive | None = None
    network: Positive | None = None
    source: Annotated[str, Field(min_length=1)]


def resolve_price(cost: CostConfig, device_name: str | None, cpus_per_worker: float = 1.0) -> PriceRow:
    """Pick the row of `cost.node_type`, or of the device's name when that is auto.

    Args:
        cost: the cost section.
        device_name: name of the GPU, as torch or Ray gives it; None: the workers have no GPU.
        cpus_per_worker: cores of a worker; a row per CPU core is multiplied by them.

    Raises:
        ConfigError: no such row, or a price table that cannot be read.
    """
    table = _read_table(cost.price_table)
    name = _match_device(table, device_name) if cost.node_type == "auto" else cost.node_type
    row = table.get(name)
    if row is None:
        near = difflib.get_close_matches(name.lower(), [known.lower() for known in table], n=1, cutoff=0.5)
        nearest = next((known for known in table if near and known.lower() == near[0]), None)
        raise ConfigError(
            "cost.node_type",
            cost.node_type,
            f"no row {name} in the price table, which has {', '.join(table)}",
            f'Did you mean "{nearest}"?' if nearest else "Use one of these, or give a cost.price_table of your own",
        )
    units = cpus_per_worker if row.per == "cpu" else 1.0
    return PriceRow(
        name=name,
        market=cost.market,
        usd_per_device_hour=units * (row.spot if cost.market == "spot" else row.on_demand),
        peak_flops=cost.peak_flops or units * row.peak_flops,
        watts=units * row.watts,
        source=row.source,
        is_gpu=row.per == "gpu",
        memory_bytes=units * (row.memory or math.inf),
        devices_per_node=max(int(row.devices_per_node / units), 1),
        link_bytes_per_s=row.link or math.inf,
        network_bytes_per_s=row.network or row.link or math.inf,
    )


def list_node_types(cost: CostConfig) -> list[str]:
    """Return the names of the price table's rows."""
    return list(_read_table(cost.price_table))


def _match_device(table: dict[str, _TableRow], device_name: str | None) -> str:
    if device_name is None:
        return CPU_ROW
    for name, row in table.items():
        if row.match and re.search(row.match, device_name):
            return name
    raise ConfigError(
        "cost.node_type",
        "auto",
        f'no row of the price table matches the device "{device_name}"; rows: {", ".join(table)}',
        "Set cost.node_type to one of these, or give a cost.price_table of your own",
    )


def _read_table(path: str | None) -> dict[str, _TableRow]:
    try:
        if path is None:
            text = resources.files("rcdist.tracking").joinpath("prices.yaml").read_text(encoding="utf-8")
        else:
            text = Path(path).expanduser().read_text(encoding="utf-8")
        table = TypeAdapter(dict[str, _TableRow]).validate_python(yaml.safe_load(text))
        for row in table.values():
            re.compile(row.match or "")
        return table
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        rule = f"{place}: {first['msg']}"
    except OSError as error:
        rule = f"cannot be read ({error.strerror})"
    except (yaml.YAMLError, UnicodeDecodeError, re.error) as error:
        rule = f"is not a price table ({error})"
    raise ConfigError("cost.price_table", path, rule, "Start from a copy of rcdist/tracking/prices.yaml")
