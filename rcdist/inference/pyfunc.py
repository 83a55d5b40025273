"""A packed folder as an MLflow model: logged with its signature, loaded by `mlflow.pyfunc.load_model`, asked."""

import contextlib
import os
from pathlib import Path
from typing import Any

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

import rcdist
from rcdist.errors import ConfigError
from rcdist.inference.generate import Sampling, generate_text
from rcdist.inference.load import choose_device, load_model
from rcdist.tracking.connect import describe
from rcdist.tracking.provenance import redact

_FOLDER = "packed"
_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "prompt")]),
    outputs=Schema([ColSpec(DataType.string)]),
    params=ParamSchema(
        [
            ParamSpec("max_tokens", DataType.long, 100),
            ParamSpec("temperature", DataType.double, 0.0),
            ParamSpec("top_p", DataType.double, 1.0),
            ParamSpec("seed", DataType.long, 0),
        ]
    ),
)


class TextModel(mlflow.pyfunc.PythonModel):
    """Continue prompts with a packed folder, which is an artifact of the model."""

    def load_context(self, context: Any) -> None:
        """Load the folder, on a GPU if there is one."""
        self._loaded = load_model(Path(context.artifacts[_FOLDER]), choose_device("auto"))

    def predict(self, context, model_input, params=None):  # noqa: ANN001, ANN201, with types MLflow infers a signature
        """Return a continuation of each prompt of the column `prompt`."""
        given = params or {}
        sampling = Sampling(
            float(given.get("temperature", 0.0)), None, float(given.get("top_p", 1.0)), int(given.get("seed", 0))
        )
        parts, most = (self._loaded.model, self._loaded.tokenizer), int(given.get("max_tokens", 100))
        return [
            "".join(generate_text(*parts, prompt, max_tokens=most, sampling=sampling))
            for prompt in model_input["prompt"].tolist()
        ]


def log_packed(folder: Path, uri: str, run_id: str) -> str:
    """Log a packed folder as a model of a run that has ended, whose status stays as it is, and return the model's URI.

    Args:
        folder: of jobs/export.py.
        uri: MLflow tracking URI.
        run_id: of the run.

    Raises:
        ConfigError: MLflow does not take it.
    """
    before = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient(uri)
        ended = client.get_run(run_id).info
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            mlflow.start_run(run_id=run_id)
            try:
                logged = mlflow.pyfunc.log_model(
                    name="model",
                    python_model=TextModel(),
                    artifacts={_FOLDER: str(folder)},
                    signature=_SIGNATURE,
                    pip_requirements=[f"rcdist=={rcdist.__version__}"],
                )
            finally:
                mlflow.end_run()
                client.set_terminated(run_id, ended.status, ended.end_time)
        return str(logged.model_uri)
    except Exception as error:
        rule = f"MLflow does not take the model ({describe(error)})"
        raise ConfigError(
            "tracking.uri", redact(uri), rule, "Export without --log_model, or see to the server"
        ) from error
    finally:
        mlflow.set_tracking_uri(before)
