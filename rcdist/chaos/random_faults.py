"""Break a run by faults that a seed draws: one or two at once, at random moments; judged as all faults are."""

import contextlib
import random
import signal
import subprocess
import time
from dataclasses import dataclass

from rcdist.chaos.context import Context
from rcdist.chaos.damage import flip_bit, shard_of
from rcdist.chaos.disk import fill, small_disk
from rcdist.chaos.job import STEPS
from rcdist.chaos.verdict import RESIZED_TOLERANCE
from rcdist.checkpoint.find import find_checkpoints
from rcdist.errors import EXIT_BAD_CONFIG, EXIT_DONE, EXIT_STOPPED
from rcdist.tracking.jsonl import MetricsLog

_SAVE_EVERY = 4
_MOST_STARTS = 5
_LONGEST_START_S = 14.0
"""Seconds after the start of a job within which a fault from outside happens, if it does not wait for a step."""

IN_WORKERS = ("kill forward", "kill optimizer", "kill shard", "kill saving", "kill restore", "full shard", "nan batch")
FROM_OUTSIDE = ("sigterm", "kill driver", "second start", "disk full", "damage", "resize")


@dataclass(frozen=True)
class Strike:
    """Hold one fault.

    Attributes:
        kind: of IN_WORKERS or FROM_OUTSIDE.
        step: at which it happens; from outside: whose record it waits for, 0: it waits for seconds.
        seconds: after the start of the job.
        rank: of the worker.
    """

    kind: str
    step: int
    seconds: float
    rank: int

    def __str__(self) -> str:
        if self.kind in FROM_OUTSIDE:
            return f"{self.kind} at {f'step {self.step}' if self.step else f'{self.seconds:.1f} s'}"
        return f"{self.kind} at step {self.step} on rank {self.rank}"

    @property
    def injected(self) -> str:
        """Return it in the form of train/fault_injection.py."""
        return f"{self.kind.replace(' ', ':')}:{self.step}:{self.rank}"


def draw(seed: int) -> tuple[Strike, ...]:
    """Return the faults of a seed, one or two."""
    source = random.Random(seed)
    return tuple(_draw_one(source) for _ in range(source.choice((1, 1, 2, 2))))


def _draw_one(source: random.Random) -> Strike:
    kind = source.choice(source.choice((IN_WORKERS, FROM_OUTSIDE)))
    step, rank, seconds = source.randint(1, STEPS), source.randrange(2), source.uniform(0.0, _LONGEST_START_S)
    if kind.split()[1:] in (["shard"], ["saving"], ["restore"]):
        step = max(step // _SAVE_EVERY, 1) * _SAVE_EVERY
    elif kind in FROM_OUTSIDE and source.random() < 0.4:
        step = 0
    return Strike(kind, step, seconds, rank)


def run_random(context: Context, strikes: tuple[Strike, ...]) -> None:
    """Break a run by some faults, start it again as a user would until it is done, and judge it."""
    kinds = {strike.kind for strike in strikes}
    inside = [strike.injected for strike in strikes if strike.kind in IN_WORKERS]
    outside = [strike for strike in strikes if strike.kind in FROM_OUTSIDE]
    if "kill restore" in kinds:  # there is something to go on from only after another fault
        inside.append(f"kill:forward:{STEPS - 1}:1")
    allowed = {EXIT_DONE}
    allowed |= {EXIT_STOPPED} if "sigterm" in kinds else set()
    allowed |= {-signal.SIGKILL} if kinds & {"kill driver", "damage", "resize"} else set()
    allowed |= {EXIT_BAD_CONFIG} if kinds & {"disk full", "full shard"} else set()
    with small_disk(context.job) if "disk full" in kinds else contextlib.nullcontext():
        size = 2
        for start in range(_MOST_STARTS):
            # What makes the disk full is over when a person has looked.
            faults = inside if start == 0 else [fault for fault in inside if not fault.startswith("full")]
            more = [] if size == 2 else [f"--cluster.num_workers={size}"]
            process = context.job.start(*more, environment={"RCDIST_FAULT": ",".join(faults)})
            if start == 0:
                size = _strike(context, process, outside)
            ended = context.job.end(process)
            if ended.code == EXIT_DONE:
                break
            context.verdict.expect(ended.code in allowed, f"exit code {ended.code}: {ended.output[-1500:]}")
            if ended.code not in allowed:
                return
        if (
            "are not stored" in ended.output
        ):  # in MLflow, when its database was on the full disk: the next start does it
            context.expect_end(context.job.run(*more), EXIT_DONE)
        context.verdict.expect(ended.code == EXIT_DONE, f"not done after {_MOST_STARTS} starts: {ended.output[-1500:]}")
        nan_step = next((strike.step for strike in strikes if strike.kind == "nan batch"), None)
        tolerance = RESIZED_TOLERANCE if size != 2 else 0.0
        context.judge(tolerance=tolerance, until=None if nan_step is None else nan_step - 1)
        if nan_step is not None:
            context.expect_metrics(skipped_steps=1.0, rollbacks=0.0)


def _strike(context: Context, process: subprocess.Popen[str], strikes: list[Strike]) -> int:
    """Make the faults from outside happen, each at its moment; return the workers of the next start."""
    size, began = 2, time.monotonic()
    for strike in sorted(strikes, key=lambda strike: (strike.step > 0, strike.step, strike.seconds)):
        _wait_for(context, process, strike, began)
        if strike.kind == "sigterm":
            process.send_signal(signal.SIGTERM)
        elif strike.kind == "second start":
            _expect_refusal(context, process)
        elif strike.kind == "disk full":
            _fill_for_a_while(context, process)
        else:
            process.send_signal(signal.SIGKILL)
            process.wait()
            if strike.kind == "resize":
                size = 1 + 2 * strike.rank
            elif strike.kind == "damage":
                time.sleep(3.0)  # the workers of a killed driver end some moments after it
                folders = find_checkpoints(context.run_dir)
                if len(folders) > 1:  # with the only one damaged the run could not go on
                    flip_bit(shard_of(folders[0]))
    return size


def _wait_for(context: Context, process: subprocess.Popen[str], strike: Strike, began: float) -> None:
    log = MetricsLog(context.run_dir)
    while process.poll() is None:
        records = log.read() if strike.step else []
        if records[-1:] and records[-1].step >= strike.step:
            return
        if not strike.step and time.monotonic() - began >= strike.seconds:
            return
        time.sleep(0.02)


def _expect_refusal(context: Context, process: subprocess.Popen[str]) -> None:
    """Start the same run a second time while it is held."""
    held = list(context.run_dir.glob("lease-*.json"))
    if not held:
        return  # not yet, or not any more
    second = context.job.run()
    if process.poll() is None:
        context.verdict.expect(second.code == EXIT_BAD_CONFIG, f"a second start ended with exit code {second.code}")
        context.verdict.expect("the run is held by process" in second.output, second.output[-500:])


def _fill_for_a_while(context: Context, process: subprocess.Popen[str]) -> None:
    filler = context.job.storage / "filler"
    fill(filler, 0)
    deadline = time.monotonic() + 4.0
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    filler.unlink()
