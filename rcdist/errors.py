"""The error tree, the exit codes of jobs, and the one form every user-facing message has."""

# RcdistError
#   ConfigError      a setting is wrong (exit 2)
#     HeldError      another job holds the run (exit 2)
#   DataError        a corpus or tokenizer cannot be used (exit 2)
#   CheckpointError  a checkpoint is damaged or belongs to something else (exit 2)
#   ClusterError     the cluster cannot run this (exit 3)
#   BudgetError      the money, device seconds or wall time allowed are used up (exit 4)
#     DominatedError a trial of a search cannot reach the front any more (exit 4)
#   DivergedError    the loss is not finite or has run away, and the policy is to stop (exit 5)
#   RetriesError     workers failed more often than allowed (exit 6)

_MAX_SHOWN = 500
"""Characters that a message shows of each of its parts: settings may hold texts of any length."""

EXIT_DONE = 0
EXIT_UNEXPECTED = 1
EXIT_BAD_CONFIG = 2
EXIT_DOES_NOT_FIT = 3
EXIT_BUDGET = 4
EXIT_DIVERGED = 5
EXIT_RETRIES = 6
EXIT_STOPPED = 143


class RcdistError(Exception):
    """Say `<field>=<value>: <rule>. <what to do>.` in one line.

    Args:
        field: dotted configuration key, or the name of the thing that is wrong. Empty: no prefix.
        value: the offending value; a string is shown in double quotes.
        rule: the rule it broke, with the other number.
        remedy: what to do next.

    All fields go to `Exception.__init__`, so that the error survives pickling between processes.
    """

    exit_code = EXIT_UNEXPECTED

    def __init__(self, field: str, value: object, rule: str, remedy: str) -> None:
        super().__init__(field, value, rule, remedy)
        self.field, self.value, self.rule, self.remedy = field, value, rule, remedy

    def __str__(self) -> str:
        value = _cut(str(self.value))
        shown = f'"{value}"' if isinstance(self.value, str) else value
        prefix = f"{_cut(self.field)}={shown}: " if self.field else ""
        text = f"{prefix}{_cut(self.rule.rstrip('.'))}. {_cut(self.remedy.rstrip('.'))}."
        return " ".join(text.split())


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


class ConfigError(RcdistError, ValueError):
    """Report a setting that is wrong."""

    exit_code = EXIT_BAD_CONFIG


class HeldError(ConfigError):
    """Report a run that another job holds."""


class DataError(RcdistError):
    """Report a corpus, token shard or tokenizer that cannot be used."""

    exit_code = EXIT_BAD_CONFIG


class CheckpointError(RcdistError):
    """Report a checkpoint that is damaged or belongs to another model."""

    exit_code = EXIT_BAD_CONFIG


class ClusterError(RcdistError):
    """Report work that the cluster cannot run."""

    exit_code = EXIT_DOES_NOT_FIT


class BudgetError(RcdistError):
    """Report that a run has used up what it was allowed; its newest checkpoint stands."""

    exit_code = EXIT_BUDGET


class DominatedError(BudgetError):
    """Report a trial that is stopped because its lower bound is dominated; its newest checkpoint stands."""


class DivergedError(RcdistError):
    """Report a loss or gradient that is not finite, or has run away, where the policy is to stop."""

    exit_code = EXIT_DIVERGED


class RetriesError(RcdistError):
    """Report that workers failed more often than the run may be retried."""

    exit_code = EXIT_RETRIES
