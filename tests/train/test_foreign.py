"""A checkpoint from elsewhere is data, or is refused before anything in it runs."""

import os
from pathlib import Path

import pytest
import torch

from rcdist.errors import CheckpointError
from rcdist.train.foreign import refuse_code


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


def test_what_is_no_checkpoint_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.pt").write_bytes(b"\x80\x02cposix\nsystem\nq\x00.")
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
