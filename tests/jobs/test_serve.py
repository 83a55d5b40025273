"""jobs/serve.py on a real Ray Serve, asked by OpenAI's client; what cannot be served is one line before Ray starts."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from rcdist.data.tokenizer import Tokenizer
from rcdist.errors import EXIT_BAD_CONFIG, EXIT_STOPPED
from rcdist.inference.generate import Sampling, generate_text
from rcdist.inference.packed import pack_model
from rcdist.model.lm import LanguageModel
from rcdist.ports import free_port
from tests.conftest import ROOT
from tests.inference.test_packed import settings, trained, write
from tests.jobs.run import run_in_process

CONFIG = settings({"plan": "T cG@a"}, vocab_size=257)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return trained(CONFIG)


@pytest.fixture(scope="module")
def folder(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serve") / "packed"
    write(out, model, Tokenizer(None), CONFIG, 5, "")
    return out


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_what_cannot_be_served_is_refused(
    folder: Path, taken_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RCDIST_API_KEY", raising=False)
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (copied / path.name).write_bytes(path.read_bytes()[: 100 if path.suffix == ".safetensors" else None])
    cases = [
        ([f"--model={tmp_path / 'nothing'}"], "checkpoint="),
        ([f"--model={copied}"], "model.safetensors has 100 bytes"),
        ([f"--model={folder}", f"--port={taken_port}"], f"port={taken_port}: 127.0.0.1 cannot be listened on"),
        ([f"--model={folder}", "--host=0.0.0.0"], "there is no API key"),
        ([f"--model={folder}", "--host=no.such.host.invalid"], "is no address of this machine"),
        ([f"--model={folder}", "--max_running=0"], "max_running=0"),
    ]
    for arguments, message in cases:
        assert run_in_process("serve.py", arguments) == EXIT_BAD_CONFIG
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


@pytest.mark.slow
def test_a_server_answers_like_the_model_and_ends_by_a_signal(model: LanguageModel, folder: Path) -> None:
    port = free_port()
    command = [sys.executable, str(ROOT / "jobs" / "serve.py"), f"--model={folder}", f"--port={port}", "--name=ours"]
    environment = os.environ | {"RCDIST_API_KEY": "secret-of-this-test"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    lines = []
    try:
        for line in server.stdout:
            lines.append(line)
            if line.startswith("ours at http"):
                break
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="secret-of-this-test", timeout=60)
        packed = pack_model(model)
        expected = "".join(generate_text(packed, Tokenizer(None), "It", max_tokens=30, sampling=Sampling()))
        create = client.completions.create
        assert create(model="ours", prompt="It", max_tokens=30, temperature=0).choices[0].text == expected
        stream = create(model="ours", prompt="It", max_tokens=30, temperature=0, stream=True)
        assert "".join(event.choices[0].text for event in stream) == expected
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=client.base_url, api_key="another", max_retries=0).models.list()
    finally:
        server.send_signal(signal.SIGTERM)
        output = "".join(lines) + server.communicate(timeout=60)[0]
    assert server.returncode == EXIT_STOPPED, output
    assert "Traceback" not in output and "secret-of-this-test" not in output
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return
        time.sleep(0.2)
    raise AssertionError("the port is still listened on")
