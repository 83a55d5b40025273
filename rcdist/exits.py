"""The exit codes of jobs, and what a job's main does about errors and signals."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from rcdist.errors import EXIT_DONE, EXIT_STOPPED, EXIT_UNEXPECTED, ConfigError, RcdistError
from rcdist.storage import say


class Shown(SystemExit):
    """Leave with 0 after --help or --show-config, as nothing else may."""


def run_job(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run a job's main on the arguments of the process, and exit; see run_main."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = run_main(main, sys.argv[1:])
    if code == EXIT_STOPPED:
        # A thread of the interrupted work may still be inside Ray: taking the interpreter down around it can crash.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_main(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    """Call a job's main and return the exit code of what happened.

    A RcdistError, also one that comes out of Ray, prints its one line on stderr; anything else unexpected prints its
    traceback. SIGTERM and Ctrl-C end with EXIT_STOPPED.
    """
    try:
        _check_text(argv)
        return main(argv) or EXIT_DONE
    except Shown:
        return EXIT_DONE
    except KeyboardInterrupt:
        return _stopped()
    except SystemExit as stop:
        # Ray's own handlers answer SIGTERM with sys.exit(15), and Ray Train answers Ctrl-C with sys.exit(0).
        if stop.code in (None, 0, signal.SIGTERM):
            return _stopped()
        raise
    except Exception as error:
        cause = find_cause(error)
        if cause is None:
            traceback.print_exc()
            return EXIT_UNEXPECTED
        say(str(cause), sys.stderr)
        return cause.exit_code


def _check_text(argv: list[str]) -> None:
    """Refuse arguments that are no text: names and paths go into files that are UTF-8.

    Raises:
        ConfigError: shows the bytes.
    """
    for number, argument in enumerate(argv, start=1):
        shown = os.fsencode(argument).decode("utf-8", "backslashreplace")
        if shown != argument:
            raise ConfigError(f"argument {number}", shown, "has bytes that are not UTF-8", "Rename what it names")


def find_cause(error: BaseException) -> RcdistError | None:
    """Return the RcdistError that an exception carries: itself, or inside what Ray, Ray Train and `raise from` wrap."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        current = queue.pop(0)
        inner = list(_inner(current))
        # Ray's RayTaskError(ConfigError) is a ConfigError too, but its text is a traceback: take what it wraps.
        if isinstance(current, RcdistError) and not isinstance(getattr(current, "cause", None), RcdistError):
            return current
        seen.add(id(current))
        queue.extend(item for item in inner if id(item) not in seen)
    return None


def _inner(error: BaseException) -> Iterator[BaseException]:
    failures = getattr(error, "worker_failures", None)
    yield from failures.values() if isinstance(failures, dict) else ()
    # RayTaskError.cause, ControllerError.controller_failure, and Ray Train's wrapper around a worker's exception.
    for name in ("cause", "controller_failure", "_base_exc", "__cause__"):
        item = getattr(error, name, None)
        if isinstance(item, BaseException):
            yield item


def _stopped() -> int:
    say("stopped", sys.stderr)
    return EXIT_STOPPED
