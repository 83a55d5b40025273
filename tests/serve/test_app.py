"""Over real HTTP, with OpenAI's own client: the offline text, streams, limits, and one clear error for all else."""

import concurrent.futures
import http.client
import json
import random
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rcdist.inference.generate import Sampling, generate_text
from tests.serve.conftest import KEY, LIMITS, Server

PROMPT = "It was a truth"
GREEDY = Sampling()


def ask(server: Server, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict, bytes]:
    """Send a request as it is; return (status, headers, body)."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    data = json.dumps(body).encode() if isinstance(body, dict | list) else body
    connection.request(
        method, path, data, {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"} | headers
    )
    answer = connection.getresponse()
    read = answer.read()
    connection.close()
    return answer.status, dict(answer.headers), read


def offline(server: Server, prompt: str, max_tokens: int, sampling: Sampling = GREEDY, stops: tuple = ()) -> str:
    parts = (server.model, server.tokenizer, prompt)
    return "".join(generate_text(*parts, max_tokens=max_tokens, sampling=sampling, stops=stops))


def test_a_completion_is_the_offline_text(server: Server) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["small"] and client.models.retrieve("small").id == "small"
    done = client.completions.create(model="small", prompt=PROMPT, max_tokens=30, temperature=0)
    assert done.choices[0].text == offline(server, PROMPT, 30)
    assert done.choices[0].finish_reason == "length" and done.object == "text_completion"
    assert done.usage and (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(PROMPT) + 1, 30)


def test_sampling_is_that_of_its_seed(server: Server) -> None:
    client = server.client()
    create = client.completions.create
    done = create(
        model="small", prompt=PROMPT, max_tokens=20, temperature=0.9, top_p=0.8, seed=5, n=3, extra_body={"top_k": 30}
    )
    for i, choice in enumerate(done.choices):
        assert choice.index == i
        assert choice.text == offline(server, PROMPT, 20, Sampling(0.9, 30, 0.8, 5 + i))
    unseeded = {create(model="small", prompt=PROMPT, max_tokens=20).choices[0].text for _ in range(4)}
    assert len(unseeded) > 1
    assert create(model="small", prompt=PROMPT).usage.completion_tokens <= 16


def test_several_prompts_as_text_or_ids(server: Server) -> None:
    client = server.client()
    prompts = [PROMPT, "x", ""]
    expected = [offline(server, prompt, 10) for prompt in prompts]
    ids = [server.tokenizer.encode_batch([prompt])[0] for prompt in prompts]
    for given in (prompts, ids):
        done = client.completions.create(model="small", prompt=given, max_tokens=10, temperature=0)
        assert [choice.text for choice in done.choices] == expected
    echoed = client.completions.create(model="small", prompt=PROMPT, max_tokens=10, temperature=0, echo=True)
    assert echoed.choices[0].text == PROMPT + expected[0]


def test_streams_are_the_same_text(server: Server) -> None:
    stream = server.client().completions.create(
        model="small",
        prompt=[PROMPT, "x"],
        max_tokens=40,
        temperature=0,
        stream=True,
        echo=True,
        stream_options={"include_usage": True},
    )
    texts, reasons, usage = ["", ""], {}, None
    for event in stream:
        usage = event.usage or usage
        for choice in event.choices:
            assert choice.index not in reasons
            texts[choice.index] += choice.text
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == [prompt + offline(server, prompt, 40) for prompt in (PROMPT, "x")]
    assert set(reasons) == {0, 1} and usage is not None and usage.completion_tokens == 80


def test_stop_strings_end_a_text(server: Server) -> None:
    whole = offline(server, PROMPT, 40)
    stop = whole[10:12]
    done = server.client().completions.create(model="small", prompt=PROMPT, max_tokens=40, temperature=0, stop=stop)
    assert done.choices[0].text == offline(server, PROMPT, 40, stops=(stop,)) == whole[: whole.find(stop)]
    assert done.choices[0].finish_reason == "stop"


def test_many_at_once(server: Server) -> None:
    client = server.client()

    def one(i: int) -> bool:
        text = (
            client.completions.create(model="small", prompt=f"{i} is", max_tokens=i + 1, temperature=0).choices[0].text
        )
        return text == offline(server, f"{i} is", i + 1)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert all(pool.map(one, range(36)))


def test_too_many_are_refused_and_others_go_on(server: Server) -> None:
    client = server.client()
    room = LIMITS.running + LIMITS.waiting
    with pytest.raises(openai.RateLimitError, match="are being continued"):
        client.completions.create(model="small", prompt=PROMPT, n=room + 1)
    assert len(client.completions.create(model="small", prompt=PROMPT, n=room).choices) == room


def test_a_client_that_goes_frees_its_slot(server: Server) -> None:
    stream = server.client().completions.create(model="small", prompt=PROMPT, max_tokens=64, n=16, stream=True)
    next(iter(stream))
    stream.close()
    for _ in range(1000):
        if server.batcher.num_running + server.batcher.num_waiting == 0:
            break
        ask(server, "GET", "/health")
    assert server.batcher.num_running + server.batcher.num_waiting == 0


def test_the_key_is_asked_for(server: Server) -> None:
    with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
        server.client("another").models.list()
    for given in ("", "Bearer", f"Basic {KEY}", "Bearer \xff"):
        status, headers, body = ask(server, "GET", "/v1/models", Authorization=given)
        assert status == 401 and json.loads(body)["error"]["type"] == "authentication_error"
        assert headers["www-authenticate"] == "Bearer"
    assert ask(server, "GET", "/health", Authorization="")[0] == 200


def test_health_and_metrics(server: Server) -> None:
    server.client().completions.create(model="small", prompt=PROMPT, max_tokens=3, temperature=0)
    ask(server, "GET", "/v1/models", Authorization="")
    status, _, body = ask(server, "GET", "/health")
    assert (status, json.loads(body)) == (200, {"status": "ok"})
    samples = {}
    for family in text_string_to_metric_families(ask(server, "GET", "/metrics")[2].decode()):
        for sample in family.samples:
            samples[sample.name, *sample.labels.values()] = sample.value
    assert samples["rcdist_requests_total", "200"] > 0 and samples["rcdist_requests_total", "401"] > 0
    assert samples["rcdist_made_tokens_total",] >= 3
    assert samples["rcdist_first_token_seconds_count",] > 0 and samples["rcdist_running_texts",] == 0


GOOD = {"model": "small", "prompt": PROMPT, "max_tokens": 2, "temperature": 0}
WRONG: list[tuple[int, Any]] = [
    (404, GOOD | {"model": "gpt-4"}),
    (400, GOOD | {"prompt": "x" * 100}),
    (400, GOOD | {"prompt": [256] * 101}),
    (400, GOOD | {"prompt": [257]}),
    (400, GOOD | {"prompt": [-1]}),
    (400, GOOD | {"prompt": ["a", 1]}),
    (400, GOOD | {"prompt": []}),
    (400, GOOD | {"prompt": ["a"] * 129}),
    (400, GOOD | {"prompt": None}),
    (400, GOOD | {"prompt": "\ud800"}),
    (400, GOOD | {"prompt": {"\udfff": 1}}),
    (400, GOOD | {"stop": ""}),
    (400, GOOD | {"stop": ["\udc00"]}),
    (400, GOOD | {"stop": ["a"] * 17}),
    (400, GOOD | {"max_tokens": 0}),
    (400, GOOD | {"max_tokens": 65}),
    (400, GOOD | {"max_tokens": 10**30}),
    (400, GOOD | {"max_tokens": "5"}),
    (400, GOOD | {"max_tokens": 1.5}),
    (400, GOOD | {"max_tokens": True}),
    (400, GOOD | {"temperature": -1}),
    (400, GOOD | {"temperature": float("nan")}),
    (400, GOOD | {"temperature": float("inf")}),
    (400, GOOD | {"top_p": 0}),
    (400, GOOD | {"top_k": 0}),
    (400, GOOD | {"n": 0}),
    (400, GOOD | {"n": 129}),
    (400, GOOD | {"seed": 2**63}),
    (400, GOOD | {"stream": "yes"}),
    (400, GOOD | {"stream_options": {"x": 1}}),
    (400, GOOD | {"logprobs": 3}),
    (400, GOOD | {"best_of": 3}),
    (400, GOOD | {"presence_penalty": 0.5}),
    (400, GOOD | {"logit_bias": {"5": 1}}),
    (400, GOOD | {"suffix": "x"}),
    (400, GOOD | {"unknown": 1}),
    (400, {"model": "small"}),
    (400, {}),
    (400, []),
    (400, b""),
    (400, b"{"),
    (400, b"null"),
    (400, b"\xff\xfe"),
    (400, b'{"model": "small", "prompt": "\xff"}'),
    (400, b"[" * 4000),
    (400, b'{"max_tokens": ' + b"9" * 4000 + b"}"),
    (413, b" " * 5000),
]


@pytest.mark.parametrize("stream", [False, True])
def test_malformed_requests_are_4xx_and_one_line(server: Server, stream: bool) -> None:
    draw = random.Random(3)
    for status, body in [*WRONG, *_broken(draw, 60)]:
        body = body | {"stream": True} if stream and isinstance(body, dict) and "stream" not in body else body
        given, _, answer = ask(server, "POST", "/v1/completions", body)
        assert given == status, (body, answer)
        error = json.loads(answer)["error"]
        assert error["message"].endswith(".") and "\n" not in error["message"] and len(error["message"]) < 1200, error
        assert error["type"] == "invalid_request_error"
    for status, method, path in [(404, "GET", "/"), (404, "POST", "/v1/chat/completions"), (405, "PUT", "/v1/models")]:
        given, _, answer = ask(server, method, path, b"{}")
        assert given == status and json.loads(answer)["error"]["message"]
    status, _, answer = ask(server, "POST", "/v1/completions", GOOD)
    assert status == 200 and json.loads(answer)["choices"][0]["text"] == offline(server, PROMPT, 2)


def _broken(draw: random.Random, count: int) -> list[tuple[int, bytes]]:
    """Return good requests of which a piece is missing."""
    whole = json.dumps(GOOD).encode()
    return [(400, whole[: draw.randrange(len(whole) - 1)]) for _ in range(count)]


def test_a_body_without_length_has_the_same_limit(server: Server) -> None:
    parts = iter([b'{"model": '] + [b" " * 1000] * 6)
    status, _, answer = ask(server, "POST", "/v1/completions", parts)
    assert status == 413 and "at most 4096 bytes" in json.loads(answer)["error"]["message"]
