"""A packed folder as an MLflow model on a real store: logged, loaded again, asked; the run stays ended."""

from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from rcdist.data.tokenizer import Tokenizer
from rcdist.errors import ConfigError
from rcdist.inference.generate import Sampling, generate_text
from rcdist.inference.packed import pack_model
from rcdist.inference.pyfunc import log_packed
from tests.inference.test_packed import settings, trained, write


@pytest.mark.slow
def test_a_logged_model_is_loaded_and_asked(tmp_path: Path, mlflow_db: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(mlflow_db.read_bytes())
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("models", artifact_location=(tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    client.set_terminated(run_id, "KILLED")
    config = settings({"plan": "T cG@a"})
    model = trained(config)
    write(tmp_path / "packed", model, Tokenizer(None), config, 5, "")
    logged = log_packed(tmp_path / "packed", uri, run_id)
    assert client.get_run(run_id).info.status == "KILLED"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        loaded = mlflow.pyfunc.load_model(logged)
    finally:
        mlflow.set_tracking_uri(before)
    prompts = pd.DataFrame({"prompt": ["It is", "x"]})
    packed = pack_model(model)
    expected = [
        "".join(generate_text(packed, Tokenizer(None), prompt, max_tokens=12, sampling=Sampling()))
        for prompt in prompts["prompt"]
    ]
    assert list(loaded.predict(prompts, params={"max_tokens": 12})) == expected
    assert len(loaded.predict(prompts)[0]) > len(expected[0])
    signature = loaded.metadata.signature
    assert signature.inputs.input_names() == ["prompt"] and "temperature" in str(signature.params)
    with pytest.raises(MlflowException):
        loaded.predict(pd.DataFrame({"text": ["It is"]}))


def test_a_run_that_is_not_there_is_one_line(tmp_path: Path, mlflow_db: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(mlflow_db.read_bytes())
    with pytest.raises(ConfigError, match="does not take the model") as refused:
        log_packed(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}", "0" * 32)
    assert "\n" not in str(refused.value)
