"""The benchmark's kinds on small sizes: what they report, never how fast."""

import json
from collections.abc import Callable

import pytest

from tests.jobs.run import run_in_process

SMALL = "--pairs 2 --threads 1 --layers 1 --glu_width 64 --vocab_size 64 --seq_len 16 --batch 2 --width 64 --tokens 32"


Run = Callable[..., dict]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(kind: str, *more: str) -> dict:
        assert run_in_process("benchmark.py", [kind, "--json", *SMALL.split(), *more]) == 0
        found: dict = json.loads(capsys.readouterr().out)
        assert found["pairs"] == 2 and found["threads"] == 1 and found["device"]
        return found

    return run


def check_ratio(found: dict) -> None:
    assert 0 < found["ratio"]["low"] <= found["ratio"]["median"] <= found["ratio"]["high"]


def test_frozen(run: Run) -> None:
    found = run("frozen")
    for topology in ("dense", "block", "hadamard", "ring"):
        check_ratio(found[topology])


def test_deltas(run: Run) -> None:
    found = run("deltas", "--plan", "c@a", "--topology", "dense")
    assert found["parameters"]["T"] - found["parameters"]["plan"] == -64  # one block: shared with nobody, plus a gain
    for name in ("train", "prefill", "decode"):
        check_ratio(found[name])


def test_decode(run: Run) -> None:
    found = run("decode", "--plan", "G@a", "--decoded", "3")
    for name in ("decode", "prefill"):
        assert found[name]["plan_over_T"]["median"] > 0 and found[name]["llama_over_T"]["median"] > 0
        assert found[name]["tokens_per_s"].keys() == {"T", "plan", "llama"}
    assert found["llama_dtype"].keys() == {"decode", "prefill"}
    # Two bits a weight of the block beside two bytes; the embedding is float32 here.
    assert found["weights_bytes"]["T"] < found["weights_bytes"]["llama_bf16"]
    assert found["resident_bytes"].keys() == {"ours after 3", "ours after 30", "llama_bf16"}


@pytest.mark.exhaustive
def test_serve(run: Run) -> None:
    found = run("serve", "--seconds", "1", "--clients", "4", "--decoded", "20", "--vocab_size", "300")
    assert found["requests"] > 5 and found["failed"] == found["unlike_offline"] == 0
    assert all(rate > 0 for rate in found["tokens_per_s"].values())


def test_scan(run: Run) -> None:
    found = run("scan")
    check_ratio(found["4096"])
    assert found["512"]["ratio"]["median"] == 1.0


@pytest.mark.exhaustive
def test_step(run: Run) -> None:
    found = run("step")
    for other in ("port", "llama"):
        check_ratio(found[other])
    assert (
        found["dtype"].keys() == found["parameters"].keys() == found["peak_bytes"].keys() == {"ours", "port", "llama"}
    )
    assert found["peak_bytes"]["ours"] > 0 and found["peak_bytes"]["port"] > 0
    # The port has a norm for every projection, the Llama none for the gates.
    sizes = found["parameters"]
    assert abs(sizes["port"] - sizes["ours"]) < 0.1 * sizes["ours"] > abs(sizes["llama"] - sizes["ours"])


def test_bad_plans_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_in_process("benchmark.py", ["deltas", *SMALL.split(), "--plan", "x"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and "unknown matrix letter 'x'" in errors


def test_bytes(run: Run) -> None:
    found = run("bytes")
    assert found["port"]["over_port"] == 1
    assert found["cG@a"]["over_port"] < found["T"]["over_port"] < 1
