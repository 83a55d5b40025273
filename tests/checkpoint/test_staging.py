"""A copy is of the moment it is asked for, and its tensors have storages of their own; of a GPU: gpu/test_steps."""

import torch

from rcdist.checkpoint.staging import Staging


def test_a_copy_does_not_change_with_what_was_copied() -> None:
    whole = torch.arange(10.0)
    found = {}
    staging = Staging(torch.device("cpu"), 100)
    staging.copy(lambda to_host: found.update(to_host({"part": whole[2:4], "names": ["a"], "none": None})))
    whole.zero_()
    staging.wait()
    staging.protect()
    assert found["part"].tolist() == [2.0, 3.0] and found["names"] == ["a"] and found["none"] is None
    assert found["part"].untyped_storage().nbytes() == 8
    staging.close()
