"""What transformers loads, without rcdist, is the trained model: logits, state, padding, generated text, token ids."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rcdist.data.tokenizer import Tokenizer
from rcdist.errors import CheckpointError
from rcdist.inference.export_hf import write_huggingface
from rcdist.inference.from_huggingface import is_huggingface, load_huggingface
from rcdist.inference.generate import Sampling, encode_prompt, generate_ids
from rcdist.ops.weights import WeightsQuantisedOnce
from tests.data.kinds import all_kinds, own_bpe
from tests.inference.test_packed import BOTH, settings, tokens, trained


def export(folder: Path, choice: dict, tokenizer: Tokenizer | None = None, **model: object):  # noqa: ANN201
    """Return our model, and the same as transformers loads it."""
    config = settings(choice, **model)
    ours = trained(config)
    folder.mkdir(exist_ok=True)
    write_huggingface(folder, ours, tokenizer or Tokenizer(None), config, "card")
    return ours, AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def check_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare logits: where a value lies between two codes, another order of adding up may round it to the other."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)
    assert ((found - expected).abs() < 1e-3).float().mean() > 0.9


@pytest.mark.parametrize(
    ("choice", "norm"), [*BOTH, ({"plan": "cG@a", "topology": "hadamard", "version": 1}, "shared")], ids=str
)
@torch.no_grad()
def test_logits_and_state_are_the_trained_models(choice: dict, norm: str, tmp_path: Path) -> None:
    readout = "state" if norm == "shared" else "gate"
    ours, theirs = export(tmp_path / "out", choice, norm=norm, readout_norm=readout)
    inputs, targets = tokens()
    with WeightsQuantisedOnce():
        expected = ours(inputs)
        loss = ours(inputs, None, targets) / targets.numel()
    whole = theirs(inputs)
    check_close(whole.logits, expected)
    again = theirs(inputs, labels=torch.cat([inputs, targets[:, -1:]], 1)[:, :-1]).loss
    assert torch.isfinite(again)
    nats = torch.nn.functional.cross_entropy(whole.logits.flatten(0, 1), targets.flatten())
    assert abs(float(nats - loss)) < 1e-4
    first = theirs(inputs[:, :11])
    rest = theirs(inputs[:, 11:], state=first.state)
    torch.testing.assert_close(rest.logits, whole.logits[:, 11:], rtol=1e-4, atol=1e-4)
    # Padding on the left leaves no state behind.
    padded = torch.cat([torch.full((2, 3), 7), inputs], 1)
    mask = torch.cat([torch.zeros(2, 3), torch.ones_like(inputs)], 1)
    torch.testing.assert_close(theirs(padded, attention_mask=mask).logits[:, 3:], whole.logits, rtol=1e-4, atol=1e-4)


def test_it_generates_the_same_text_greedily_and_in_a_padded_batch(tmp_path: Path) -> None:
    tokenizer = own_bpe()
    ours, theirs = export(tmp_path / "out", {"plan": "T cG@a"}, tokenizer, vocab_size=400)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    prompts = ["It is a truth", "that"]
    batch = loaded(prompts, return_tensors="pt", padding=True)
    made = theirs.generate(**batch, max_new_tokens=12, do_sample=False)
    for row, prompt in zip(made, prompts, strict=True):
        ids = encode_prompt(tokenizer, prompt)
        ours_ids = generate_ids(ours, ids, max_tokens=12, sampling=Sampling(), stop_ids={tokenizer.eod_id})
        expected = tokenizer.decode([*ids, *ours_ids])
        assert loaded.decode(row, skip_special_tokens=True) == expected


@pytest.mark.parametrize("kind", ["bytes", "bpe", "byte-level", "byte-fallback"])
def test_the_tokenizer_gives_the_same_ids_and_text(kind: str, tmp_path: Path) -> None:
    tokenizer = all_kinds(tmp_path)[kind]
    export(tmp_path / "out", {"plan": "T"}, tokenizer, vocab_size=tokenizer.vocab_size)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    for text in ("It is  a truth,\n\tthat", "Zürich 東京 \U0001f600", " <|endofdocument|></s>", "", "\x00\x7f"):
        assert loaded(text)["input_ids"] == encode_prompt(tokenizer, text)
        ids = tokenizer.encode_batch([text])[0]
        assert loaded.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)


def test_it_needs_nothing_of_rcdist(tmp_path: Path) -> None:
    export(tmp_path / "out", {"plan": "T"})
    code = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as A\n"
        "t, m = A.from_pretrained('out', trust_remote_code=True), M.from_pretrained('out', trust_remote_code=True)\n"
        "print(m.generate(**t('It', return_tensors='pt'), max_new_tokens=2, do_sample=False).shape)\n"
        "assert not [n for n in sys.modules if n.startswith('rcdist')]\n"
    )
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "torch.Size" in done.stdout, done.stderr


def test_generate_takes_the_folder_and_refuses_a_damaged_one(tmp_path: Path) -> None:
    tokenizer = own_bpe()
    ours, _ = export(tmp_path / "out", {"plan": "T cG@a"}, tokenizer, vocab_size=400)
    assert is_huggingface(tmp_path / "out") and not is_huggingface(tmp_path)
    stepper, loaded = load_huggingface(tmp_path / "out", torch.device("cpu"))
    ids = encode_prompt(tokenizer, "It is a truth")
    assert encode_prompt(loaded, "It is a truth") == ids
    rest = {"max_tokens": 12, "sampling": Sampling(0.8, seed=3), "stop_ids": {tokenizer.eod_id}}
    assert list(generate_ids(stepper, ids, **rest)) == list(generate_ids(ours, ids, **rest))
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_huggingface(tmp_path / "out", torch.device("cpu"))
