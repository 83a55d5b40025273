"""The price table: every row usable, the right row for each device, and one line for what is wrong."""

import pickle
from pathlib import Path

import pytest

from rcdist.config import CostConfig
from rcdist.errors import ConfigError
from rcdist.tracking.prices import _read_table, resolve_price


@pytest.mark.parametrize("name", list(_read_table(None)))
def test_every_row_costs_something_in_both_markets(name: str) -> None:
    on_demand = resolve_price(CostConfig(node_type=name), None)
    spot = resolve_price(CostConfig(node_type=name, market="spot"), None)
    assert 0 < spot.usd_per_device_hour <= on_demand.usd_per_device_hour
    assert on_demand.usd_per_device_s * 3600 == pytest.approx(on_demand.usd_per_device_hour)
    assert pickle.loads(pickle.dumps(spot)) == spot


@pytest.mark.parametrize(
    ("device", "row"),
    [
        (None, "laptop-cpu"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A100-PCIE-40GB", "A100-40"),
        ("A100-40G", "A100-40"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA A100 80GB PCIe", "A100-80"),
        ("A100", "A100-80"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H200", "H200"),
    ],
)
def test_auto_takes_the_row_of_the_device(device: str | None, row: str) -> None:
    assert resolve_price(CostConfig(), device).name == row


@pytest.mark.parametrize("device", ["NVIDIA L40S", "NVIDIA GH200 480GB", "Tesla T4"])
def test_auto_refuses_a_device_without_a_row(device: str) -> None:
    with pytest.raises(ConfigError, match=f'cost.node_type="auto": no row .* "{device}"; rows: laptop-cpu, cpu-server'):
        resolve_price(CostConfig(), device)


def test_unknown_row_names_the_rows_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r'cost.node_type="h10": no row h10 .*A100-40.*Did you mean "H100"\?'):
        resolve_price(CostConfig(node_type="h10"), None)


def test_cpu_rows_are_per_core_and_gpu_rows_are_not() -> None:
    one, four = (resolve_price(CostConfig(), None, cpus) for cpus in (1.0, 4.0))
    assert four.usd_per_device_hour == 4 * one.usd_per_device_hour
    assert (four.watts, four.peak_flops) == (4 * one.watts, 4 * one.peak_flops)
    assert resolve_price(CostConfig(node_type="L4"), None, 4.0) == resolve_price(CostConfig(node_type="L4"), None)


def test_peak_flops_of_the_configuration_wins() -> None:
    assert resolve_price(CostConfig(peak_flops=5e12), None, 2.0).peak_flops == 5e12


ROW = "mine: {on_demand: 2.0, spot: 1.0, peak_flops: 1.0e+12, watts: 10, source: me}"


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(ROW)
    cost = CostConfig(price_table=str(path), node_type="mine", market="spot")
    assert resolve_price(cost, None).usd_per_device_hour == 1.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ROW.replace("2.0", "0"), "mine.on_demand: Input should be greater than 0"),
        (ROW.replace("spot", "sport"), "mine.spot: Field required"),
        ("- a", "the file: Input should be a valid dictionary"),
        ("a: [", "is not a price table"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "prices.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolve_price(CostConfig(price_table=str(path)), None)
    assert str(caught.value).startswith(f'cost.price_table="{path}": ')
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
