"""Tasks of lm-evaluation-harness on our models: an adapter, and the run of tasks by name or from YAML files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from rcdist.errors import ConfigError, DataError
from rcdist.inference.generate import Sampling, encode_prompt, generate_text
from rcdist.inference.likelihood import Likelihood, Request, measure_likelihoods
from rcdist.inference.load import LoadedModel

_DEFAULT_MAX_TOKENS = 256
Measure = Callable[[Sequence[Request]], list[Likelihood]]


class HarnessModel(LM):
    """Answer lm-eval's requests; every text begins with the document boundary.

    Args:
        loaded: model and tokenizer.
        measure: returns likelihoods of (context, continuation) in ids. None: `measure_likelihoods`, in this process.
    """

    def __init__(self, loaded: LoadedModel, measure: Measure | None = None) -> None:
        super().__init__()
        self._loaded = loaded
        self._measure: Measure = measure or (lambda requests: measure_likelihoods(loaded, requests))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return (sum of log-probabilities in nats, whether greedy) of each continuation after its context."""
        found = self._measure([self._split(*request.args) for request in requests])
        return [(-likelihood.nats, likelihood.is_greedy) for likelihood in found]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the sum of log-probabilities of each whole text in nats: the state has no limit of length."""
        texts = [encode_prompt(self._loaded.tokenizer, request.args[0]) for request in requests]
        return [-likelihood.nats for likelihood in self._measure([(ids[:1], ids[1:]) for ids in texts])]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return a continuation of each prompt, up to a stop string."""
        return [self._generate(*request.args) for request in requests]

    def _generate(self, prompt: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        is_sampled = options.get("do_sample", float(options.get("temperature") or 0.0) > 0)
        pieces = generate_text(
            self._loaded.model,
            self._loaded.tokenizer,
            prompt,
            max_tokens=int(options.get("max_gen_toks", options.get("max_tokens", _DEFAULT_MAX_TOKENS))),
            sampling=Sampling(
                float(options.get("temperature") or 1.0) if is_sampled else 0.0,
                options.get("top_k"),
                float(options.get("top_p") or 1.0),
            ),
            stops=[stop for stop in ([until] if isinstance(until, str) else until) if stop],
        )
        return "".join(pieces)

    def _split(self, context: str, continuation: str) -> Request:
        """Return the ids of both; a blank at the end of the context belongs to the word behind it."""
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        tokenizer = self._loaded.tokenizer
        before = encode_prompt(tokenizer, kept)
        whole = encode_prompt(tokenizer, kept + continuation)
        # Where both make one token together, that one is measured.
        shared = min(len(before), len(whole) - 1) if continuation else len(before)
        return whole[: max(shared, 1)], whole[max(shared, 1) :]


def run_tasks(
    loaded: LoadedModel, tasks: list[str], measure: Measure | None = None, limit: int | None = None
) -> dict[str, dict[str, float]]:
    """Return the metrics of tasks.

    Args:
        loaded: model and tokenizer.
        tasks: names of lm-eval's tasks, or YAML files of its format.
        measure: see HarnessModel.
        limit: examples of each task from its start; None: all.

    Raises:
        ConfigError: there is no such task.
        DataError: its data cannot be read.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    files = [Path(task) for task in tasks if task.endswith((".yaml", ".yml"))]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise ConfigError("tasks", str(missing), "is no file", "Give a YAML file of lm-eval, or the name of a task")
    names = [task for task in tasks if not task.endswith((".yaml", ".yml"))]
    manager = TaskManager(include_defaults=bool(names))  # its index of all tasks takes seconds
    unknown = next((name for name in names if not manager.match_tasks([name])), None)
    if unknown is not None:
        raise ConfigError("tasks", unknown, "lm-eval has no such task", "`lm_eval ls tasks` lists them")
    chosen: list[Any] = [*names, *map(str, files)]
    try:
        found = simple_evaluate(
            HarnessModel(loaded, measure),
            tasks=chosen,
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            log_samples=False,
        )
    except (OSError, ConnectionError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError("tasks", ", ".join(tasks), f"cannot be run ({reason})", "See lm-eval's task") from error
    assert found is not None
    return {
        task: {
            name.removesuffix(",none"): float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for task, metrics in found["results"].items()
    }
