"""Rows become CSV that reads back, with or without columns given."""

import csv
import io

from rcdist.report.csv_text import format_csv

ROWS = [{"a": 1, "b": "x, y"}, {"a": 2, "c": 0.5}]


def test_columns_are_those_of_all_rows_in_their_order() -> None:
    assert list(csv.DictReader(io.StringIO(format_csv(ROWS)))) == [
        {"a": "1", "b": "x, y", "c": ""},
        {"a": "2", "b": "", "c": "0.5"},
    ]


def test_columns_may_be_more_than_the_rows_have() -> None:
    assert format_csv([{"a": 1}], ["b", "a"]) == "b,a\n,1\n"
    assert format_csv([], ["a"]) == "a\n"
