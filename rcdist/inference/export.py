"""Turn a loaded checkpoint into a folder that is used without training state."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from rcdist.errors import CheckpointError, ConfigError
from rcdist.inference.card import write_card
from rcdist.inference.export_hf import write_huggingface
from rcdist.inference.folder import WEIGHTS, write_packed
from rcdist.inference.load import LoadedModel
from rcdist.storage import new_folder

_USE = {
    "packed": """```
python jobs/generate.py --checkpoint {folder} --prompt "It was"
python jobs/evaluate.py --checkpoint {folder} --text FILE
```""",
    "hf": """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)
inputs = tokenizer("It was", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True))
```""",
}
"""How each form is used."""


def export_model(loaded: LoadedModel, out: Path, form: Literal["packed", "hf"]) -> str:
    """Write a folder, and return a line that says what it holds.

    Args:
        loaded: a training checkpoint.
        out: must not exist, or be an empty folder.
        form: packed: two bits a weight. hf: what transformers loads.

    Raises:
        ConfigError: the folder has something in it or cannot be written, or the model is not ternary.
        CheckpointError: what was loaded is no training checkpoint.
    """
    config = loaded.config
    if loaded.manifest is None:
        raise CheckpointError("checkpoint", str(loaded.folder), "an export itself", "Give the run's folder")
    if config.model.rounding != "nearest":
        raise ConfigError("model.rounding", config.model.rounding, "its weights are not ternary", "Use another run")
    check_is_new(out)
    card = write_card(config, loaded.manifest, _USE[form].format(folder=out.name))
    parts = (loaded.model, loaded.tokenizer, config)
    with complete_folder(out) as folder:
        if form == "packed":
            write_packed(folder, *parts, loaded.step, card)
        else:
            write_huggingface(folder, *parts, card)
    size = (out / WEIGHTS).stat().st_size
    return f"{out}: step {loaded.step} of {config.name!r}, plan {config.reservoir.plan}, {size:,} bytes of weights"


def check_can_log(loaded: LoadedModel, form: str) -> None:
    """Refuse what is no model of an MLflow run.

    Raises:
        ConfigError: names why.
    """
    if form != "packed":
        raise ConfigError("log_model", True, f"format={form}, a packed folder can be logged", "Use --format packed")
    if loaded.manifest is None or loaded.manifest.mlflow_run_id is None:
        raise ConfigError("log_model", True, "the checkpoint belongs to no MLflow run", "Leave it out")


def log_exported(loaded: LoadedModel, out: Path) -> str:
    """Log a packed folder as a model of its checkpoint's MLflow run, and return a line that names it.

    Raises:
        ConfigError: MLflow does not take it.
    """
    from rcdist.inference.pyfunc import log_packed  # takes a second, which nothing else needs

    assert loaded.manifest is not None and loaded.manifest.mlflow_run_id is not None
    return f"MLflow model {log_packed(out, loaded.config.tracking_uri, loaded.manifest.mlflow_run_id)}"


def check_is_new(out: Path) -> None:
    """Refuse a folder that has something in it.

    Raises:
        ConfigError: it has.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("out", str(out), "there is something already", "Choose a folder that is not there, or empty")


@contextmanager
def complete_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder, which becomes `out` in one step when all is in it.

    Raises:
        ConfigError: it cannot be written, or `out` has something in it.
    """
    try:
        with new_folder(out) as folder:
            yield folder
    except OSError as error:
        rule = f"cannot be written ({error.strerror or error})"
        raise ConfigError("out", str(out), rule, "Choose a folder that is not there, or empty") from error
