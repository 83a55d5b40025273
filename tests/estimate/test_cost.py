"""What a model costs: totals are sums of rows."""

import pytest

from rcdist.config.cli import read_config
from rcdist.estimate.cost import describe_cost
from rcdist.model.cost import count_parameters


@pytest.mark.parametrize("plan", ["T", "T cG@a", "fcgoGUD@a c=@b+r"])
def test_rows_add_up(plan: str) -> None:
    config = read_config([f"--reservoir.plan={plan}"], "test")
    cost = describe_cost(config)
    for name in ("train", "decode"):
        assert sum(row[f"{name}_flops"] for row in cost["matrices"]) == cost["flops_per_token"][name]
    frozen = [row for row in cost["matrices"] if " frozen" in row["matrix"]]
    assert sum(row["weights"] for row in frozen) == cost["parameters"]["unique"]
    assert (
        sum(row["weights"] // row["num_distinct"] * row["num_applied"] for row in frozen)
        == cost["parameters"]["frozen"]
    )
    counts = count_parameters(config.architecture)
    assert cost["parameters"]["stored"] == counts.stored
