"""A checkpoint from elsewhere is data, or is refused before anything in it runs."""

import os
import zipfile
from pathlib import Path

import pytest
import torch

from rcdist.checkpoint.untrusted import refuse_code
from rcdist.errors import CheckpointError


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
    (tmp_path / "b.pt").write_bytes(content)
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
    path = tmp_path / "hostile.pt"
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
    torch.save(state, tmp_path / "c.pt")
    refuse_code(tmp_path)
