"""lm-eval's requests are answered as the model's own numbers say, and one of its tasks runs offline on a local file."""

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from rcdist.data.tokenizer import Tokenizer
from rcdist.errors import ConfigError, DataError
from rcdist.inference.generate import Sampling, generate_text
from rcdist.inference.harness import HarnessModel, run_tasks
from rcdist.inference.likelihood import measure_likelihoods
from rcdist.inference.load import LoadedModel
from tests.data.kinds import own_bpe
from tests.inference.test_packed import settings, trained

TASK = """task: colours
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def load(tokenizer: Tokenizer) -> LoadedModel:
    config = settings({"plan": "T cG@a"}, vocab_size=400)
    return LoadedModel(trained(config), tokenizer, config, 0, Path())


def ask(kind: str, *arguments: object) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=arguments, idx=0)]  # type: ignore[arg-type]


@pytest.mark.parametrize("tokenizer", [Tokenizer(None), own_bpe()], ids=["bytes", "bpe"])
def test_requests_are_answered(tokenizer: Tokenizer) -> None:
    loaded = load(tokenizer)
    model = HarnessModel(loaded)
    ids = [tokenizer.eod_id, *tokenizer.encode_batch(["It is a truth"])[0]]
    (whole,) = measure_likelihoods(loaded, [(ids[:1], ids[1:])])
    assert model.loglikelihood_rolling(ask("loglikelihood_rolling", "It is a truth")) == [-whole.nats]
    # What a blank at the end of the context belongs to makes no difference; both parts make the whole.
    parts = [
        model.loglikelihood(ask("loglikelihood", *each))[0] for each in (("It is ", "a truth"), ("It is", " a truth"))
    ]
    assert parts[0] == parts[1]
    first, _ = model.loglikelihood(ask("loglikelihood", "", "It is"))[0]
    assert first + parts[0][0] == pytest.approx(-whole.nats, rel=1e-4)
    made = "".join(generate_text(loaded.model, tokenizer, "It", max_tokens=9, sampling=Sampling(), stops=["zz"]))
    assert model.generate_until(ask("generate_until", "It", {"until": ["zz"], "max_gen_toks": 9})) == [made]


def test_a_task_runs_offline_on_a_local_file(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [
        {"question": f"{colour} is", "choices": [" a colour", " a number", " 7"], "answer": i % 3}
        for i, colour in enumerate(["Red", "Blue", "Green", "Black"])
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tmp_path / "colours.yaml"
    task.write_text(TASK.format(data=data))
    loaded = load(Tokenizer(None))
    found = run_tasks(loaded, [str(task)])
    requests = [([256, *row["question"].encode()], list(choice.encode())) for row in rows for choice in row["choices"]]
    nats = [each.nats for each in measure_likelihoods(loaded, requests)]
    best = [min(range(3), key=lambda j: nats[3 * i + j]) for i in range(len(rows))]
    right = sum(choice == row["answer"] for choice, row in zip(best, rows, strict=True))
    assert found["colours"]["acc"] == right / len(rows)
    assert run_tasks(loaded, [str(task)], limit=1)["colours"]["acc"] in (0.0, 1.0)
    data.unlink()
    with pytest.raises(DataError, match="cannot be run"):
        run_tasks(loaded, [str(task)])


@pytest.mark.parametrize("task", [pytest.param("no_such_task", marks=pytest.mark.slow), "nothing.yaml"])
def test_an_unknown_task_is_refused(task: str) -> None:
    with pytest.raises(ConfigError, match="tasks="):
        run_tasks(load(Tokenizer(None)), [task])
