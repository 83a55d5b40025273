"""What jobs/benchmark.py takes on the command line."""

from typing import Annotated, Literal

from pydantic import Field

from rcdist.config import Section
from rcdist.config.reservoir import Topology

Count = Annotated[int, Field(ge=1)]


class BenchmarkArguments(Section):
    """Measure in interleaved pairs what freezing, fusing and the system around a step are worth on this machine.

    The kind may stand first, without its key; --json prints one object instead of a table.
    """

    kind: Literal[
        "frozen", "step", "deltas", "scan", "overhead", "search", "bytes", "kernels", "decode", "serve", "scaling"
    ]
    """What is measured; rcdist/benchmark/README.md explains each."""
    pairs: Count = 7
    """Interleaved pairs."""
    device: Literal["cpu", "cuda"] | None = None
    """Where; None: on a GPU if there is one."""
    threads: Count | None = None
    """Threads on a CPU; None: one per core."""
    width: Annotated[int, Field(ge=8)] | None = None
    """Model width d; None: 1024 for frozen and scan, else 512."""
    tokens: Count = 2048
    """Tokens of frozen; scan takes 16 times as many."""
    layers: Count = 6
    """Blocks of step, deltas and bytes; so the next ones."""
    glu_width: Annotated[int, Field(ge=8)] = 1536
    """Inner width of the GLU."""
    vocab_size: Annotated[int, Field(ge=16)] = 4096
    """Vocabulary."""
    seq_len: Count = 512
    """Tokens per window."""
    batch: Count = 4
    """Windows per step; sequences of decode."""
    plan: str = "cG@a"
    """Plan of deltas, bytes, decode and serve."""
    topology: Topology | dict[str, Topology] = "hadamard"
    """Topology of its matrices, or a map '{c: dense, G: hadamard}'."""
    decoded: Count = 32
    """Tokens that decode makes per sequence, and serve per text."""
    workers: Count = 1
    """Workers of overhead; leave a core to Ray."""
    preset: str = "tiny"
    """Settings of scaling: a preset or a file."""
    numbers: list[Count] = [1, 2]
    """Numbers of workers of scaling; the others are compared with the first."""
    stages: list[Annotated[int, Field(ge=0, le=3)]] = [1]
    """ZeRO stages of scaling."""
    micro_batch: Count | None = None
    """Windows per micro-batch of scaling; None: all of a step."""
    clients: Count = 32
    """That ask at a time in serve."""
    seconds: Count = 60
    """That they ask, over all pairs."""
    others: list[Literal["port", "llama"]] = ["port", "llama"]
    """What step compares with; decode with a Llama if it is among them."""
