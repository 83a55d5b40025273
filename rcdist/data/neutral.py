"""Switch off what a tokenizer.json carries besides its vocabulary and that shortens, lengthens or changes text."""

from typing import Any

_SPECIAL_TOKEN_ADDERS = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")


def neutralise(description: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the description of a tokenizer that gives ids for all of a text and for nothing else.

    Bits per byte count all bytes of a text: they would be false where a tokenizer cuts it at a length, folds its case,
    or adds to it. What only writes the text differently, and has its inverse in the decoder, stays: a blank as U+2581,
    a byte as a letter.

    Args:
        description: content of a tokenizer.json.

    Returns:
        The description, and what was switched off, in words. Special tokens around a text (post_processor) are among
        them, although the file keeps its post_processor: it is never applied.
    """
    changes: list[str] = []
    made = dict(description)
    for key in ("truncation", "padding"):
        if made.get(key) is not None:
            changes.append(key)
            made[key] = None
    made["normalizer"] = _filter_normaliser(made.get("normalizer"), changes)
    if (made.get("post_processor") or {}).get("type") in _SPECIAL_TOKEN_ADDERS:
        changes.append("special tokens around a text")
    if made["model"].get("dropout"):
        changes.append("dropout of merges")
        made["model"] = made["model"] | {"dropout": None}
    made["pre_tokenizer"] = _without_prefix(made.get("pre_tokenizer"), changes)
    if any(token["lstrip"] or token["rstrip"] for token in made["added_tokens"]):
        changes.append("blanks that added tokens take along")
        made["added_tokens"] = [token | {"lstrip": False, "rstrip": False} for token in made["added_tokens"]]
    return made, tuple(changes)


def _filter_normaliser(step: dict[str, Any] | None, changes: list[str]) -> dict[str, Any] | None:
    """Return the normaliser without the parts of which the text does not come back."""
    if step is None:
        return None
    if step["type"] == "Sequence":
        steps = [kept for part in step["normalizers"] if (kept := _filter_normaliser(part, changes)) is not None]
        return step | {"normalizers": steps} if steps else None
    writes_blanks = step["type"] == "Replace" and step["pattern"] == {"String": " "}
    if writes_blanks or step["type"] in ("Prepend", "ByteLevel"):
        return step
    changes.append(f"normaliser {step['type']}")
    return None


def _without_prefix(step: dict[str, Any] | None, changes: list[str]) -> dict[str, Any] | None:
    """Return the pre-tokenizer without the blank that a byte-level one puts in front of a text."""
    if step is None:
        return None
    if step["type"] == "Sequence":
        return step | {"pretokenizers": [_without_prefix(part, changes) for part in step["pretokenizers"]]}
    if step["type"] == "ByteLevel" and step["add_prefix_space"]:
        changes.append("a blank in front of a text")
        return step | {"add_prefix_space": False}
    return step
