"""Serving: many clients at a time over one, of the same server, and every answer compared with the offline text."""

import asyncio
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import torch

from rcdist.benchmark.pairs import measure_pairs, ratio
from rcdist.config import JobConfig, ModelConfig, ReservoirConfig
from rcdist.data.tokenizer import Tokenizer
from rcdist.errors import ClusterError
from rcdist.inference.folder import write_packed
from rcdist.inference.generate import Sampling, generate_text
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import build_bank
from rcdist.ports import free_port
from rcdist.serve.deployment import load_served
from rcdist.storage import new_folder

_NAME = "benchmark"
_PROMPTS = [f"Chapter {i}. It was a truth" for i in range(64)]
_START_S = 180.0


@dataclass
class _Asked:
    """Count what clients got."""

    requests: int = 0
    tokens: int = 0
    wrong: int = 0
    failed: int = 0
    rates: dict[int, list[float]] = field(default_factory=dict)


def measure_serving(
    script: Path, model: ModelConfig, plan: ReservoirConfig, clients: int, tokens: int, pairs: int, all_s: float
) -> dict[str, Any]:
    """Ask a server by one client and by many in turns, each for as long; greedy texts of at most `tokens` tokens.

    Args:
        script: jobs/serve.py.
        model: of random weights, over bytes.
        plan: of the model.
        clients: at a time.
        tokens: of each text.
        pairs: of one client and many.
        all_s: seconds that the many ask, over all pairs.
    """
    config = JobConfig(name=_NAME, model=model, reservoir=plan)
    with tempfile.TemporaryDirectory() as below:
        folder = Path(below) / "packed"
        made = LanguageModel(config.architecture, build_bank(config.architecture), seed=config.seed).eval()
        tokenizer = Tokenizer(None)
        with torch.no_grad():  # no text ends by chance
            made.head.weight[tokenizer.eod_id] = 0.0
        with new_folder(folder) as empty:
            write_packed(empty, made, tokenizer, config, 0, "")
        loaded = load_served(folder, "auto")
        greedy = Sampling()
        expected = [
            "".join(generate_text(loaded.model, loaded.tokenizer, prompt, max_tokens=tokens, sampling=greedy))
            for prompt in _PROMPTS
        ]
        port = free_port()
        command = [sys.executable, str(script), f"--model={folder}", f"--port={port}", f"--max_running={clients}"]
        with (Path(below) / "log").open("w+") as log:
            server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                url = f"http://127.0.0.1:{port}"
                _wait(server, Path(log.name))
                asked = _Asked()
                for count in (1, clients):  # neither is the first to ask
                    asyncio.run(_ask(url, count, min(2.0, all_s), tokens, expected, _Asked()))
                arms = {
                    str(count): lambda count=count: asyncio.run(
                        _ask(url, count, all_s / pairs, tokens, expected, asked)
                    )
                    for count in (1, clients)
                }
                measure_pairs(arms, pairs, warm_up=0)
            finally:
                server.terminate()
                server.wait(60)
    one, many = asked.rates[1], asked.rates[clients]
    return {
        "clients": clients,
        "tokens": tokens,
        "requests": asked.requests,
        "failed": asked.failed,
        "unlike_offline": asked.wrong,
        "tokens_per_s": {"1 client": sorted(one)[pairs // 2], f"{clients} clients": sorted(many)[pairs // 2]},
        "many_over_one": ratio(many, one),
    }


def _wait(server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_S
    while " at http" not in log.read_text(errors="replace"):
        if server.poll() is not None or time.monotonic() > end:
            last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise ClusterError("", "", f"The server does not start: {last}", "See what jobs/serve.py says")
        time.sleep(0.2)


async def _ask(url: str, clients: int, seconds: float, tokens: int, expected: list[str], asked: _Asked) -> None:
    """Let clients ask one thing after another for so long."""
    body = {"model": _NAME, "max_tokens": tokens, "temperature": 0}
    before = asked.tokens
    start = time.monotonic()

    async def client(number: int) -> None:
        turn = number
        while time.monotonic() < start + seconds:
            at = turn % len(_PROMPTS)
            turn += clients
            asked.requests += 1
            async with session.post(f"{url}/v1/completions", json=body | {"prompt": _PROMPTS[at]}) as answer:
                found = await answer.json()
                if answer.status != 200:
                    asked.failed += 1
                    continue
            asked.tokens += found["usage"]["completion_tokens"]
            asked.wrong += found["choices"][0]["text"] != expected[at]

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(number) for number in range(clients)))
    asked.rates.setdefault(clients, []).append((asked.tokens - before) / (time.monotonic() - start))
