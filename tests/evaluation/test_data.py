"""Records are the same from every file format; what is missing or damaged is one clear line."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.data import MissingDataError, Source

ROWS = [{"question": "Who, and\u2028why?", "answer": "Ada"}, {"question": "Where?", "answer": "Löm"}]


def _lines(path: Path) -> bytes:
    del path
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode("utf-8")


def _list(path: Path) -> bytes:
    del path
    return json.dumps(ROWS).encode("utf-8")


def _table(path: Path) -> bytes:
    rows = path.with_suffix(".draft")
    with rows.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"], delimiter="\t" if ".tsv" in path.name else ",")
        writer.writeheader()
        writer.writerows(ROWS)
    return rows.read_bytes()


@pytest.mark.parametrize("packed", ["", ".xz", ".gz"])
@pytest.mark.parametrize(
    ("name", "write"), [("a.jsonl", _lines), ("a.json", _list), ("a.csv", _table), ("a.tsv", _table)]
)
def test_every_format_gives_the_same_records(
    name: str, write: Callable[[Path], bytes], packed: str, tmp_path: Path
) -> None:
    path = tmp_path / "eval" / f"{name}{packed}"
    path.parent.mkdir()
    data = write(path)
    path.write_bytes({"": bytes, ".xz": lzma.compress, ".gz": gzip.compress}[packed](data))  # type: ignore[operator]
    files = {"test": ("other.jsonl", path.name)}
    assert list(Source(task="a/b", files=files, place=tmp_path).records()) == ROWS
    assert list(Source(task="a/b", files=files, place=path).records()) == ROWS


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.jsonl", b'{"a": 1}\n{"a"'), ("a.jsonl", b"\xff\xfe"), ("a.jsonl.xz", b"no xz"), ("a.jsonl.gz", b"\x1f\x8bno")],
)
def test_a_damaged_file_is_named(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name} is damaged"):
        list(Source(task="a/b", files={"test": (name,)}, place=tmp_path).records())


def test_a_broken_line_is_told_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n{"a"', "utf-8")
    with pytest.raises(InputError, match=r"a\.jsonl is damaged: line 4 is no JSON"):
        list(Source(task="a/b", place=tmp_path / "a.jsonl").records())


def test_what_is_missing_is_one_line(tmp_path: Path) -> None:
    source = Source(task="a/b", files={"test": ("x.jsonl", "y.csv")}, place=tmp_path)
    with pytest.raises(MissingDataError, match=r"a/b is left out: .* holds no x\.jsonl or y\.csv\.") as error:
        source.path()
    assert "\n" not in str(error.value)
    with pytest.raises(MissingDataError, match="a/b has no data"):
        Source(task="a/b", files={"test": ("x.jsonl",)}).path()


def test_the_hub_is_asked_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None, split: str) -> Any:
        asked.append((name, config, split))
        if name == "none":
            raise RuntimeError("dataset scripts are no longer supported")
        return ROWS

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert list(Source(task="a/b", place="hub:owner/name").records()) == ROWS
    list(Source(task="a/b", place="hub:owner/name:en:validation").records())
    list(Source(task="a/b", place="hub:owner/name:en:validation").records("train"))
    assert asked == [("owner/name", None, "test"), ("owner/name", "en", "validation"), ("owner/name", "en", "train")]
    with pytest.raises(MissingDataError, match="a/b is left out: 'none' cannot be loaded"):
        list(Source(task="a/b", place="hub:none").records())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDataError, match="needs datasets"):
        list(Source(task="a/b", place="hub:owner/name").records())
