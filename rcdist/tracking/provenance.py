"""What a tracked run says about itself: flattened parameters, versions, git commit; and no passwords."""

import json
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import rcdist

MAX_PARAM_CHARS = 6000
"""Longest value of an MLflow parameter."""
_PACKAGES = ("ray", "torch", "deepspeed", "mlflow", "datasets", "tokenizers", "numpy")
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")
"""Characters that MLflow refuses in the name of a parameter, as the @ of a shared matrix."""
_SECRET = (
    r"(?:password|passwd|secret|credential|signature|bearer|api[-_]?key|access[-_]?key|private[-_]?key|auth[-_]?key"
    r"|(?<![a-z])(?<!per[-_ ])token(?![a-z]))"
)
"""What the name of something secret has in it; not tokens, tokenizer and flops_per_token."""
_SECRET_NAME = re.compile(_SECRET, re.IGNORECASE)
_URI_USER = re.compile(r"(?<!sqlite)(://)(?:[^/\s:@]+|[^/\s:@]*:(?!\d+/)[^\s\"'<>]*)@")
"""A user, maybe with a password that has / in it; of what follows a port is none."""
_IN_QUERY = re.compile(rf"([?&][^=&\s]*{_SECRET}[^=&\s]*)=[^&\s]+", re.IGNORECASE)
_IN_TEXT = re.compile(
    rf"(?<![?&\w])([\w.-]*{_SECRET}[\w.-]*[\"']?\s*[:=]\s*|\bbearer\s+)([\"']?)[^\s\"',}}]+\2", re.IGNORECASE
)
_HIDDEN = "***"


def redact(text: str) -> str:
    """Replace by *** what may be secret in a text: users and passwords of URIs, and what is named like a secret."""
    text = _URI_USER.sub(rf"\1{_HIDDEN}@", text)
    text = _IN_QUERY.sub(rf"\1={_HIDDEN}", text)
    return _IN_TEXT.sub(rf"\1\2{_HIDDEN}\2", text)


def redact_tree(tree: Any) -> Any:
    """Redact every string in nested mappings and lists, and whatever has a name like a secret."""
    if isinstance(tree, Mapping):
        return {
            key: _HIDDEN if value is not None and _SECRET_NAME.search(str(key)) else redact_tree(value)
            for key, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [redact_tree(value) for value in tree]
    return redact(tree) if isinstance(tree, str) else tree


def flatten_params(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to `model.width` -> text, without passwords, cut at MAX_PARAM_CHARS.

    Lists become JSON; an empty mapping is `{}`; a matrix `r@b` is named r:b.
    """
    flat: dict[str, str] = {}
    for key, value in redact_tree(tree).items():
        name = prefix + _NOT_IN_NAMES.sub(":", str(key))
        if isinstance(value, Mapping) and value:
            flat |= flatten_params(value, f"{name}.")
        else:
            shown = json.dumps(value) if isinstance(value, list | tuple | Mapping) else str(value)
            flat[name] = shown[:MAX_PARAM_CHARS]
    return flat


def package_versions() -> dict[str, str]:
    """Return the versions of rcdist and of the packages that a run's numbers and files depend on."""
    return {"rcdist": rcdist.__version__} | {name: metadata.version(name) for name in _PACKAGES}


def collect_tags() -> dict[str, str]:
    """Return versions of what a run depends on, and the git commit of the code when it lies in a checkout."""
    tags = {"version.python": platform.python_version()}
    tags |= {f"version.{name}": version for name, version in package_versions().items()}
    folder = Path(__file__).resolve().parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit  # the tag that MLflow's pages show
        tags["git.changed"] = str(bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))).lower()
    return tags


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
