"""Look at one thing after the other; see examine."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from rcdist.cluster import ray_session
from rcdist.config import JobConfig
from rcdist.doctor.finding import Finding
from rcdist.doctor.machine import find_compiler, find_devices, find_processor, find_step, find_versions
from rcdist.doctor.nodes import find_collectives, find_nodes, find_ray
from rcdist.doctor.stores import find_mlflow, find_storage
from rcdist.errors import RcdistError
from rcdist.preflight import check_settings


def examine(config: JobConfig) -> Iterator[Finding]:
    """Yield what is found, one by one; what cannot be looked at because of an earlier problem is left out.

    Args:
        config: of the run that is to start: its settings, storage, tracking store and cluster.
    """
    for look in (find_versions, find_processor, find_compiler, find_devices):
        yield from guarded(look.__name__.removeprefix("find_"), look)
    yield from guarded("step", find_step)
    yield from guarded("settings", lambda: _find_settings(config))
    yield from guarded("storage", lambda: find_storage(config))
    yield from guarded("mlflow", lambda: find_mlflow(config))
    with ExitStack() as stack:
        try:
            stack.enter_context(ray_session(config, log_to_driver=False))
        except RcdistError as error:
            yield _problem("ray", error)
            return
        yield from guarded("ray", find_ray)
        yield from guarded("nodes", lambda: find_nodes(config))
        yield from guarded("collectives", find_collectives)


def guarded(what: str, look: Callable[[], Any]) -> Iterator[Finding]:
    """Yield what a look finds; what it raises is a finding too."""
    try:
        found = look()
        yield from [found] if isinstance(found, Finding) else found
    except RcdistError as error:
        yield _problem(what, error)
    except Exception as error:  # of whatever library
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        yield Finding(what, f"cannot be looked at ({type(error).__name__}: {reason})", "See to that first")


def _find_settings(config: JobConfig) -> Finding:
    check_settings(config)
    return Finding("settings", f"of the run {config.name}, with its text and tokenizer")


def _problem(what: str, error: RcdistError) -> Finding:
    text = str(error)
    remedy = error.remedy.rstrip(".")
    return Finding(what, text.removesuffix(".").removesuffix(remedy).rstrip(" ."), remedy)
