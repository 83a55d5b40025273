"""The sending thread: order and batches, an outage and its end, and no waiting where none is promised."""

import logging
import threading

import pytest

from rcdist.tracking.sender import BATCH_ROWS, Sender
from rcdist.tracking.tracker import Row


def rows(count: int) -> list[Row]:
    return [Row("train/loss_nats", float(i), i, i) for i in range(count)]


class Store:
    """A store that can be out."""

    def __init__(self) -> None:
        self.is_out = False
        self.batches: list[list[Row]] = []
        self.tried = threading.Event()

    def write(self, batch: list[Row]) -> None:
        self.tried.set()
        if self.is_out:
            raise ConnectionRefusedError("out")
        self.batches.append(batch)


def test_rows_arrive_in_order_in_batches_that_mlflow_takes() -> None:
    store = Store()
    sender = Sender(store.write, str)
    sender.add(rows(2 * BATCH_ROWS + 1))
    assert sender.flush(30)
    assert [row for batch in store.batches for row in batch] == rows(2 * BATCH_ROWS + 1)
    assert max(map(len, store.batches)) <= BATCH_ROWS
    sender.close()


def test_rows_of_an_outage_are_sent_when_it_ends_and_it_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    store.is_out = True
    sender = Sender(store.write, lambda error: f"reason: {error}")
    with caplog.at_level(logging.WARNING):
        sender.add(rows(3))
        assert store.tried.wait(30)
        assert not sender.flush(0.2)
        assert sender.num_pending == 3
        store.is_out = False
        assert sender.flush(30)
    assert store.batches == [rows(3)]
    assert [record.getMessage() for record in caplog.records] == [
        "reason: out. Training goes on; metrics are kept and sent later.",
        "The tracking server answers again; 3 values are sent now.",
    ]
    sender.close()


def test_add_does_not_wait_for_a_store_that_hangs() -> None:
    release, entered = threading.Event(), threading.Event()

    def hang(batch: list[Row]) -> None:
        entered.set()
        release.wait(60)

    sender = Sender(hang, str)
    sender.add(rows(1))
    assert entered.wait(30)
    sender.add(rows(5))  # returns although the thread is inside `hang`
    assert sender.num_pending == 6
    assert not sender.flush(0.01)
    release.set()
    assert sender.flush(30)
    sender.close()
