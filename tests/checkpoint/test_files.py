"""Files of one rank: what is written is what is listed, and reads back; a state copied to the host is nobody else's."""

import errno
import hashlib
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from rcdist.checkpoint.files import count_bytes, to_host, write_rank
from rcdist.checkpoint.manifest import rank_list_name


def test_what_is_listed_is_what_lies_there(tmp_path: Path) -> None:
    state = {"weights": torch.arange(5.0), "step": 3}
    write_rank(tmp_path, 1, {"zero/a.pt": state, "config.json": b"{}"})
    listed = json.loads((tmp_path / rank_list_name(1)).read_text())
    assert set(listed) == {"zero/a.pt", "config.json"}
    for name, entry in listed.items():
        content = (tmp_path / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    back = torch.load(tmp_path / "zero" / "a.pt", weights_only=True)
    assert torch.equal(back["weights"], state["weights"])
    assert back["step"] == 3


def test_a_copy_does_not_follow_what_it_was_copied_from() -> None:
    base = torch.zeros(100)
    state = OrderedDict(view=base[10:13], nested=[{"x": base}, (base[0], "text")], number=4)
    copied = to_host(state)
    base.fill_(1)
    assert copied["view"].tolist() == [0, 0, 0]
    assert float(copied["nested"][0]["x"].sum()) == 0
    assert copied["nested"][1][1] == "text"
    # Of a view only its own elements are kept.
    assert copied["view"].untyped_storage().nbytes() == 12


def test_bytes_are_those_of_the_tensors() -> None:
    assert count_bytes({"a": torch.zeros(3, dtype=torch.bfloat16), "b": [torch.zeros(2), b"xyz", 7]}) == 6 + 8 + 3


def test_a_rank_without_files_says_so(tmp_path: Path) -> None:
    write_rank(tmp_path, 1, {})
    assert [path.name for path in tmp_path.iterdir()] == [rank_list_name(1)]
    assert json.loads((tmp_path / rank_list_name(1)).read_text()) == {}


def test_a_folder_that_was_taken_away_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_rank(tmp_path / "saving-00000004-ab", 1, {"config.json": b"{}"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"x" * 100, {"weights": torch.arange(1000.0)}])
def test_a_full_disk_is_the_operating_systems_error_and_leaves_no_list(tmp_path: Path, content: object) -> None:
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero" / "a.pt").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        write_rank(tmp_path, 0, {"zero/a.pt": content})
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / rank_list_name(0)).exists()
