from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from samples import sample_record

from benchmarks.record import Record, Row, Spread, read_records
from ultragist_rag.errors import InputError


def test_a_record_comes_back_from_its_file(tmp_path: Path) -> None:
    record = sample_record()
    path = record.write(tmp_path)
    assert path.name == "cpu-bundled-compress.json"
    assert read_records(tmp_path) == [record] == [Record.from_json(record.to_json())]
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert read_records(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("format",), 2),
        (("more",), 1),
        (("notes",), "text"),
        (("size",), "huge"),
        (("rows", 0, "settings", "tokens"), None),
        (("machine", "n_cores"), True),
        (("machine", "matmul_flops"), "fast"),
        (("machine",), None),
        (("rows", 0, "value", "median"), "much"),
        (("rows", 0, "value", "least"), 5000.0),
        (("rows", 0, "value", "q1"), 1099.0),
        (("rows", 0, "value", "median"), float("nan")),
        (("rows", 0, "baseline"), ""),
        (("rows", 0, "floor_value"), -1.0),
        (("rows", 0, "met"), None),
    ],
)
def test_what_is_no_record_is_refused(place: tuple[str | int, ...], value: object, tmp_path: Path) -> None:
    plain = json.loads(sample_record().to_json())
    inner = plain
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    (tmp_path / sample_record().file_name).write_text(json.dumps(plain), "utf-8")
    with pytest.raises(InputError, match="no result of a benchmark"):
        read_records(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"suite": 1}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no result of a benchmark"):
        Record.from_json(text)


def test_a_file_is_named_after_its_content(tmp_path: Path) -> None:
    sample_record().write(tmp_path).rename(tmp_path / "other.json")
    with pytest.raises(InputError, match="Name it so"):
        read_records(tmp_path)


def test_a_spread_turns_round_with_its_unit() -> None:
    seconds = [2.0, 0.5, 4.0, 1.0, 8.0]
    assert Spread.of(seconds).map(lambda one: 8 / one) == Spread.of([8 / one for one in seconds])
    assert Spread.of(seconds).median == median(seconds)
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0, 3.0, 3.0, 1)


def test_the_share_of_the_floor_is_at_most_one_either_way() -> None:
    row = Row(name="a", settings={}, unit="s", better="lower", value=Spread.of([4.0]), floor="f", floor_value=1.0)
    assert row.share == replace(row, better="higher", value=Spread.of([1.0]), floor_value=4.0).share == 0.25
