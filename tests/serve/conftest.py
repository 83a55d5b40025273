"""A small random model behind HTTP in this process, without Ray."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import openai
import pytest
import torch
import uvicorn

from rcdist.data.tokenizer import Tokenizer
from rcdist.inference.packed import pack_model
from rcdist.model.lm import LanguageModel
from rcdist.ports import free_port
from rcdist.serve.app import build_app
from rcdist.serve.batcher import Batcher
from rcdist.serve.completion import Served
from rcdist.serve.continuation import Mailbox
from rcdist.serve.limits import Limits, key_digest
from tests.inference.test_packed import settings, trained

LIMITS = Limits(prompt_tokens=100, max_tokens=64, body_bytes=4096, running=4, waiting=12)
KEY = "a key"


@dataclass(frozen=True)
class Server:
    """Hold a server that runs."""

    url: str
    batcher: Batcher
    model: LanguageModel
    tokenizer: Tokenizer

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)


def small_model() -> LanguageModel:
    """Return a packed model over bytes whose greedy text does not stand still."""
    torch.manual_seed(1)
    return pack_model(trained(settings({"plan": "T cG@a"}, vocab_size=257))).requires_grad_(False)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    torch.manual_seed(42)
    model, tokenizer, mailbox = small_model(), Tokenizer(None), Mailbox()
    batcher = Batcher(model, tokenizer, mailbox.publish, max_running=LIMITS.running, max_waiting=LIMITS.waiting)
    batcher.warm_up()
    worker = threading.Thread(target=batcher.run)
    worker.start()
    port = free_port()
    app = build_app(Served("small", tokenizer, batcher, mailbox, LIMITS), key_digest(KEY))
    http = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    listener = threading.Thread(target=http.run)
    listener.start()
    while not http.started:
        assert listener.is_alive()
        time.sleep(0.01)
    yield Server(f"http://127.0.0.1:{port}", batcher, model, tokenizer)
    http.should_exit = True
    batcher.close()
    listener.join()
    worker.join()
