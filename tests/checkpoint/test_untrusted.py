"""A checkpoint from elsewhere is data, or is refused before anything in it runs."""

import copyreg
import dataclasses
import io
import os
import stat
import zipfile
from pathlib import Path

import pytest
import torch

from rcdist.checkpoint.files import write_rank
from rcdist.checkpoint.find import checkpoint_name, prove_checkpoint
from rcdist.checkpoint.manifest import read_manifest, write_manifest
from rcdist.checkpoint.untrusted import admit, admitted, expected_classes, pickle_enums_by_value, refuse_code
from rcdist.errors import CheckpointError
from tests.checkpoint.test_manifest import make_checkpoint


class Attack:
    """Run a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def test_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "zero").mkdir()
    torch.save({"weights": torch.ones(3), "more": Attack(f"touch {mark}")}, tmp_path / "zero" / "a_optim_states.pt")
    with pytest.raises(CheckpointError, match=r"a_optim_states.pt: holds more than tensors"):
        refuse_code(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content", [b"\x80\x02cposix\nsystem\nq\x00.", b"", b"PK\x03\x04", b"not a pickle", b"\x80\x04."]
)
def test_what_torch_save_did_not_write_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero" / "b").write_bytes(content)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        refuse_code(tmp_path)


HOSTILE = {
    "GLOBAL and REDUCE": b"cposix\nsystem\n(X\x04\0\0\0truetR.",
    "STACK_GLOBAL": b"\x8c\x05posix\x8c\x06system\x93(X\x04\0\0\0truetR.",
    "STACK_GLOBAL of unicode": b"X\x05\0\0\0posixX\x06\0\0\0system\x93(X\x04\0\0\0truetR.",
    "INST": b"(X\x04\0\0\0trueiposix\nsystem\n.",
    "OBJ": b"(cposix\nsystem\nX\x04\0\0\0trueo.",
    "NEWOBJ_EX": b"csubprocess\nPopen\n(X\x04\0\0\0truet}\x92.",
    "EXT1": b"\x82\x01.",
    "BUILD of an expected class's state": b"cdeepspeed.runtime.fp16.loss_scaler\nLossScaler\n)\x81"
    b"}X\x0c\0\0\0__setstate__cposix\nsystem\nsb.",
    "getattr": b"cbuiltins\ngetattr\n(cposix\nX\x06\0\0\0systemtR.",
    "a name behind STOP's look-alike": b"X\x01\0\0\0.0cposix\nsystem\n(X\x04\0\0\0truetR.",
    "no STOP": b"cposix\nsystem\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_opcode_can_name_what_would_be_run(tmp_path: Path, name: str) -> None:
    path = tmp_path / "zero" / "hostile.pt"
    path.parent.mkdir()
    torch.save({"weights": torch.ones(3)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(path, "w") as made:
        for entry in good.namelist():
            content = good.read(entry)
            made.writestr(
                entry.replace("good/", "hostile/"),
                b"\x80\x02" + HOSTILE[name] if entry.endswith("data.pkl") else content,
            )
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        refuse_code(tmp_path)


def test_tensors_and_deepspeeds_own_classes_pass(tmp_path: Path) -> None:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    state = {
        "weights": torch.ones(3),
        "scaler": LossScaler(1.0),
        "stage": ZeroStageEnum.gradients,
        "where": fragment_address(numel=3, start=0),
    }
    pickle_enums_by_value()
    assert ZeroStageEnum in copyreg.dispatch_table
    (tmp_path / "zero").mkdir()
    torch.save(state, tmp_path / "zero" / "c.pt")
    refuse_code(tmp_path)
    with torch.serialization.safe_globals(expected_classes()):
        assert torch.load(tmp_path / "zero" / "c.pt", weights_only=True)["where"] == state["where"]


def stored(run_dir: Path, **more: object) -> Path:
    """Leave a checkpoint with a real tensor file, and whatever is to be hidden in it."""
    folder, tensors = run_dir / checkpoint_name(4), io.BytesIO()
    folder.mkdir(parents=True)
    torch.save({"weights": torch.ones(3), **more}, tensors)
    write_rank(folder, 0, {"zero/a.pt": tensors.getvalue(), "config.json": b"{}"})
    other = read_manifest(make_checkpoint(run_dir / "other", 4, world_size=1))
    write_manifest(folder, dataclasses.replace(other, files={}))
    return folder


def test_what_is_admitted_is_a_copy_that_only_we_can_open_with_what_is_listed(tmp_path: Path) -> None:
    folder = stored(tmp_path)
    (folder / "note.txt").write_text("not listed")
    with admitted(prove_checkpoint(folder)) as copy:
        assert copy.folder != folder and stat.S_IMODE(copy.folder.parent.stat().st_mode) == 0o700
        assert prove_checkpoint(copy.folder).manifest.files.keys() == {"zero/a.pt", "config.json"}
        assert not (copy.folder / "note.txt").exists()
        (folder / "zero" / "a.pt").write_bytes(b"changed after the proof")
        assert torch.load(copy.folder / "zero" / "a.pt", weights_only=True)["weights"].tolist() == [1, 1, 1]
    assert not copy.folder.parent.exists()


def test_code_in_an_admitted_copy_is_refused_and_the_copy_is_gone(tmp_path: Path) -> None:
    mark, home = tmp_path / "mark", tmp_path / "home"
    home.mkdir()
    found = prove_checkpoint(stored(tmp_path, more=Attack(f"touch {mark}")))
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        admit(found, home)
    assert not mark.exists() and not list(home.iterdir())


def test_what_changes_between_proof_and_copy_is_refused(tmp_path: Path) -> None:
    found = prove_checkpoint(stored(tmp_path))
    (found.folder / "zero" / "a.pt").write_bytes(b"changed")
    with pytest.raises(CheckpointError, match=r"it was .* when it was proved"):
        admit(found)


@pytest.mark.parametrize("what", ["folder", "file", "pipe", "unlisted"])
def test_links_special_files_and_what_no_list_names_are_no_checkpoint(tmp_path: Path, what: str) -> None:
    folder = stored(tmp_path)
    zero, file = folder / "zero", folder / "zero" / "a.pt"
    if what == "folder":
        zero.rename(tmp_path / "elsewhere")
        zero.symlink_to(tmp_path / "elsewhere")
    elif what == "file":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    elif what == "pipe":
        file.unlink()
        os.mkfifo(file)
    else:
        (zero / "more_optim_states.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="in no list" if what == "unlisted" else "a link or no plain file"):
        prove_checkpoint(folder)
