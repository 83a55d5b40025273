"""Checkpoints on disk: which is valid, what is named when it is damaged, what is read once, what retention keeps."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rcdist.checkpoint import find as module
from rcdist.checkpoint.find import (
    begin_save,
    checkpoint_name,
    find_at,
    find_checkpoints,
    find_newest_valid,
    finish_save,
    prove_checkpoint,
    prune_checkpoints,
    set_aside,
    sweep_unfinished,
)
from rcdist.checkpoint.manifest import MANIFEST, read_manifest
from rcdist.errors import CheckpointError
from tests.checkpoint.test_manifest import make_checkpoint


def test_a_flipped_bit_is_named_with_both_digests(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 30)
    path = folder / "zero" / "rank0.pt"
    expected = read_manifest(folder).files["zero/rank0.pt"]["sha256"]
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        prove_checkpoint(folder)
    assert "zero/rank0.pt" in str(caught.value) and expected in str(caught.value)


def test_what_was_proved_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path, 10)
    first = find_newest_valid(tmp_path)
    monkeypatch.setattr(module, "prove_checkpoint", lambda folder: pytest.fail(f"{folder} is read again"))
    assert find_newest_valid(tmp_path, proved=first) == first


def test_a_path_is_a_checkpoint_or_a_run(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 10)
    newest = make_checkpoint(tmp_path, 20)
    renamed = newest.rename(tmp_path / "downloaded")
    assert find_at(renamed).folder == renamed
    assert find_at(tmp_path).manifest.step == 10
    for path, rule in ((tmp_path / "zero", "there is no such folder"), (renamed / "zero", "has no step-")):
        with pytest.raises(CheckpointError, match=rule):
            find_at(path)


@pytest.mark.parametrize("damage", ["truncate", "remove", "no manifest", "torn manifest", "newer format"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_named(tmp_path: Path, damage: str) -> None:
    older, newest = make_checkpoint(tmp_path, 10), make_checkpoint(tmp_path, 20)
    shard, manifest = newest / "zero" / "rank1.pt", newest / MANIFEST
    if damage == "truncate":
        shard.write_bytes(b"\0" * 9)
    elif damage == "remove":
        shard.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "torn manifest":
        manifest.write_text(manifest.read_text()[:50])
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 99}))
    found = find_newest_valid(tmp_path)
    assert found is not None and found.folder == older
    (error,) = found.damaged
    assert newest.name in str(error)


def test_only_damaged_checkpoints_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    assert find_newest_valid(tmp_path) is None
    (make_checkpoint(tmp_path, 10) / "zero" / "rank0.pt").write_bytes(b"?")
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        find_newest_valid(tmp_path)


@pytest.mark.parametrize("lacks", [MANIFEST, "files-00001.json"])
def test_a_first_checkpoint_that_was_never_finished_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lacks: str
) -> None:
    (make_checkpoint(tmp_path, 10) / lacks).unlink()
    assert find_newest_valid(tmp_path) is None
    assert f"{lacks} cannot be read" in caplog.text
    (make_checkpoint(tmp_path, 20) / "zero" / "rank0.pt").write_bytes(b"?")
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
        find_newest_valid(tmp_path)


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step, loss in [(10, 4.0), (20, 3.0), (30, 3.5), (40, None), (50, 3.6)]:
        make_checkpoint(tmp_path, step, loss)
    deleted = prune_checkpoints(tmp_path, keep_latest=2)
    assert {p.name for p in deleted} == {checkpoint_name(10), checkpoint_name(30)}
    assert [p.name for p in find_checkpoints(tmp_path)] == [checkpoint_name(s) for s in (50, 40, 20)]


def test_a_save_has_its_name_when_the_last_share_is_there(tmp_path: Path) -> None:
    folder = begin_save(tmp_path, 30)
    assert find_checkpoints(tmp_path) == [] and find_newest_valid(tmp_path) is None
    assert finish_save(folder) is None and folder.exists()
    written = make_checkpoint(tmp_path / "elsewhere", 30)
    for path in [written / "zero", *written.glob("files-*"), written / MANIFEST]:
        assert finish_save(folder) is None
        path.rename(folder / path.name)
    target = finish_save(folder)
    assert target == tmp_path / checkpoint_name(30) and not folder.exists()
    assert finish_save(folder) is None  # the other ranks come too
    found = find_newest_valid(tmp_path)
    assert found is not None and found.folder == target


def test_of_many_ranks_that_finish_together_one_completes(tmp_path: Path) -> None:
    for _ in range(30):
        folder = make_checkpoint(tmp_path, 30, name="saving-00000030-ab")
        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(lambda _: finish_save(folder), range(8)))  # noqa: B023
        assert [target for target in done if target] == [tmp_path / checkpoint_name(30)]
        prove_checkpoint(tmp_path / checkpoint_name(30))
        assert not list(tmp_path.glob("saving-*")) and not list(tmp_path.glob("deleting-*"))


def test_a_step_that_is_saved_again_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 30, eval_loss_nats=1.0)
    finish_save(make_checkpoint(tmp_path, 30, eval_loss_nats=2.0, name="saving-00000030-ab"))
    assert read_manifest(tmp_path / checkpoint_name(30)).eval_loss_nats == 2.0
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint_name(30)]


def test_a_sweep_completes_what_lacks_its_name_and_deletes_what_lacks_more(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 10, name="saving-00000010-ab")
    (make_checkpoint(tmp_path, 20, name="saving-00000020-ab") / "files-00001.json").unlink()
    (make_checkpoint(tmp_path, 30, name="deleting-ab-step-00000030") / MANIFEST).unlink()
    make_checkpoint(tmp_path, 5)
    sweep_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint_name(5), checkpoint_name(10)]


@pytest.mark.parametrize("keep_latest", [1, 2])
def test_retention_counts_neither_what_is_being_saved_nor_what_is_damaged(tmp_path: Path, keep_latest: int) -> None:
    for step in (10, 20, 30):
        make_checkpoint(tmp_path, step)
    begin_save(tmp_path, 60)
    (make_checkpoint(tmp_path, 40) / MANIFEST).unlink()
    (make_checkpoint(tmp_path, 50) / "zero" / "rank1.pt").write_bytes(b"")
    prune_checkpoints(tmp_path, keep_latest)
    found = find_newest_valid(tmp_path)
    assert found is not None and found.manifest.step == 30 and len(list(tmp_path.glob("saving-*"))) == 1
    kept = [checkpoint_name(step) for step in (50, 40, 30, 20)[: keep_latest + 2]]
    assert [path.name for path in find_checkpoints(tmp_path)] == kept


def test_what_is_set_aside_counts_for_nothing_and_goes_when_enough_newer_ones_are_there(tmp_path: Path) -> None:
    older, damaged = make_checkpoint(tmp_path, 10), make_checkpoint(tmp_path, 20)
    set_aside(damaged)
    assert find_checkpoints(tmp_path) == [older]
    make_checkpoint(tmp_path, 20)
    prune_checkpoints(tmp_path, keep_latest=2)
    assert (tmp_path / "damaged-step-00000020").exists()
    make_checkpoint(tmp_path, 30)
    make_checkpoint(tmp_path, 40)
    prune_checkpoints(tmp_path, keep_latest=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint_name(30), checkpoint_name(40)]


def test_retention_keeps_one_from_before_steps_were_skipped(tmp_path: Path) -> None:
    for step, skipped in ((10, ()), (20, ()), (30, (28,)), (40, (28, 33))):
        make_checkpoint(tmp_path, step, skipped=skipped)
    prune_checkpoints(tmp_path, keep_latest=1)
    assert [path.name for path in find_checkpoints(tmp_path)] == [checkpoint_name(40), checkpoint_name(20)]


def test_only_checkpoints_of_before_a_step_count_where_that_is_asked(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        make_checkpoint(tmp_path, step)
    found = find_newest_valid(tmp_path, before=30)
    assert found is not None and found.manifest.step == 20
    assert find_newest_valid(tmp_path, before=10) is None


def test_another_reservoir_is_refused_with_both_digests(tmp_path: Path) -> None:
    found = prove_checkpoint(make_checkpoint(tmp_path, 10))
    found.check_reservoir("d" * 64)
    with pytest.raises(CheckpointError, match=f"digest {'d' * 64}, .* makes {'e' * 64}"):
        found.check_reservoir("e" * 64)


def test_retention_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "step-notes").mkdir()
    make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 20)
    prune_checkpoints(tmp_path, keep_latest=1)
    assert (tmp_path / "step-notes").is_dir()


@pytest.mark.parametrize("name", ["step-lr", "step-", "step-٣"])
def test_a_run_may_be_called_like_a_checkpoint(name: str, tmp_path: Path) -> None:
    run_dir = tmp_path / name
    run_dir.mkdir()
    folder = make_checkpoint(run_dir, 10)
    assert find_at(run_dir).folder == folder
    assert find_checkpoints(tmp_path) == []
