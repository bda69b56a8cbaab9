"""What the commands say about a store is true, and they change what they say they change."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from ultragist_rag import GistConfig, GistStore
from ultragist_rag.cli import app
from ultragist_rag.memory.memory import GistMemory, Segment
from ultragist_rag.store import shelf, upkeep

pytestmark = pytest.mark.usefixtures("own_secret")


def make_memory(seed: int = 0, slots: int = 5) -> GistMemory:
    generator = torch.Generator().manual_seed(seed)
    keys, values = (tuple(torch.randn(1, 2, slots, 8, generator=generator) for _ in range(2)) for _ in range(2))
    segments = (Segment("gist", 0, slots, 0, 4 * slots, 4),)
    return GistMemory(keys=keys, values=values, segments=segments, config=GistConfig(window=16), fingerprint="model")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "gists"


@pytest.fixture
def store(place: Path) -> GistStore:
    return GistStore.open(place)


def run(command: str, place: object, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["store", command, "--store", str(place), *map(str, arguments)])


def read(command: str, place: object, *arguments: object) -> Any:
    result = run(command, place, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def break_one(place: Path, marker: str, ending: str = "gist") -> None:
    (path,) = place.rglob(f"{marker[10:-1]}.{ending}")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def test_ls_tells_each_memory(store: GistStore, place: Path) -> None:
    markers = [
        store.put(make_memory(1), text="a"),
        store.put(make_memory(2, slots=30), text="b", quantise="int8"),
        store.put(make_memory(3)),
    ]
    rows = {row["marker"]: row for row in read("ls", place)}
    assert set(rows) == set(markers)
    assert [rows[one]["slots"] for one in markers] == [5, 30, 5]
    assert [rows[one]["quantised"] for one in markers] == ["", "int8", ""]
    assert [rows[one]["has_source"] for one in markers] == [True, True, False]
    assert sum(row["n_bytes"] for row in rows.values()) < store.stats().n_bytes
    assert all(row["dtype"] == "F32" and row["ratios"] == [4] and row["stored"] > 1e9 for row in rows.values())
    table = run("ls", place).stdout
    assert all(marker in table for marker in markers)
    assert read("ls", place, "--namespace", "other") == []


def test_ls_lists_what_it_can_read_whatever_the_files_hold(store: GistStore, place: Path) -> None:
    random.seed(3)
    whole, broken = store.put(make_memory(1), text="a"), store.put(make_memory(2), text="b")
    (path,) = place.rglob(f"{broken[10:-1]}.gist")
    data = path.read_bytes()
    for number in range(300):
        damaged = bytearray(data)
        if number % 3:
            damaged[random.randrange(1000) if number % 2 else random.randrange(8)] ^= 1 << random.randrange(8)
        else:
            del damaged[random.randrange(len(data)) :]
        path.write_bytes(damaged)
        assert whole in {one.marker for one in upkeep.list_memories(store)} <= {whole, broken}


def test_stats_counts(store: GistStore, place: Path) -> None:
    store.put(make_memory(), text="a")
    store.records.put("note", {"a": {}})
    counts = read("stats", place)
    assert (counts["n_memories"], counts["n_sources"], counts["n_records"]) == (1, 1, 1)
    assert 0 < counts["n_bytes"] == store.stats().n_bytes < counts["n_total_bytes"]
    assert f"{counts['n_bytes']:,}" in run("stats", place).stdout


def test_verify_finds_every_damaged_file_and_repairs_what_has_a_source(store: GistStore, place: Path) -> None:
    whole, made_again, bare, sourceless = (
        store.put(make_memory(number), text=str(number), keep_source=number != 2) for number in range(4)
    )
    store.records.put("note", {"a": {"text": "a note"}, "b": {}})
    assert run("verify", place).exit_code == 0
    assert read("verify", place) == {"n_files": 9, "n_repaired": 0, "damaged": []}
    break_one(place, made_again)
    break_one(place, bare)
    break_one(place, sourceless, "source")
    (record, _) = sorted(place.rglob("*.record"))
    record.write_bytes(record.read_bytes()[:-1])
    result = run("verify", place, "--json")
    assert result.exit_code == 1
    found = {one["key"].partition("/")[2]: one["can_be_made_again"] for one in json.loads(result.stdout)["damaged"]}
    names = [marker[10:-1] for marker in (made_again, bare, sourceless)]
    expected = {f"{names[0]}.gist": True, f"{names[1]}.gist": False, f"{names[2]}.source": False, record.name: False}
    assert found == expected
    result = run("verify", place, "--repair")
    assert result.exit_code == 1
    assert "9 files: 5 whole, 4 damaged" in result.stdout
    assert sorted(store) == sorted([whole, bare, sourceless])
    assert store.source(made_again).text == "1"
    assert run("verify", place).stdout.count(".gist") == 1


def test_verify_is_no_use_of_a_file(place: Path) -> None:
    size = GistStore.open("memory://", keep_source=False)
    size.put(make_memory(), text="0")
    store = GistStore.open(place, max_bytes=2 * size.stats().n_bytes + 200, keep_source=False)
    first, second = (store.put(make_memory(number), text=str(number)) for number in range(2))
    store.get(first)
    assert run("verify", place).exit_code == 0
    assert run("ls", place).exit_code == 0
    store.put(make_memory(2), text="2")
    assert (first in store, second in store) == (True, False)


def test_prune_by_age(store: GistStore, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as past:
        past.setattr(shelf, "_now", lambda: 1_000_000_000.0)
        store.put(make_memory(1), text="old")
    new = store.put(make_memory(2), text="new")
    store.records.put("note", {"a": {}})
    gone = read("prune", place, "--older-than", "30d")
    assert (gone["n_memories"], gone["n_sources"], gone["n_pages"]) == (1, 1, 0)
    assert list(store) == [new]
    assert store.stats().n_records == 1


def test_prune_to_a_size_takes_what_was_not_used_for_longest(store: GistStore, place: Path) -> None:
    markers = [store.put(make_memory(number), text=str(number)) for number in range(4)]
    store.get(markers[0])
    entries = {row["marker"]: row["n_bytes"] for row in read("ls", place)}
    bound = store.stats().n_bytes - entries[markers[1]]
    gone = read("prune", place, "--max-bytes", bound)
    assert markers[0] in store
    assert markers[1] not in store
    assert (gone["n_sources"], gone["n_pages"]) == (0, 0)
    assert store.stats().n_bytes <= bound
    assert len(store) + gone["n_memories"] == 4
    assert read("prune", place, "--max-bytes", bound)["n_bytes"] == 0


def test_prune_says_what_records_take(store: GistStore, place: Path) -> None:
    marker = store.put(make_memory(), text="a")
    store.records.put("note", {"a": {"text": "x" * 500}})
    result = run("prune", place, "--max-bytes", 500)
    assert result.exit_code == 2
    assert "500 cannot be reached" in result.stderr
    assert list(store) == [marker]


def test_prune_takes_old_pages_of_no_session(store: GistStore, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.records.put("page", {name: {"text": name} for name in ("used", "unused")})
    store.records.put("session", {"s": {"pages": ["used"]}})
    assert read("prune", place)["n_pages"] == 0  # young
    monkeypatch.setattr(upkeep, "PAGE_SECONDS", -1.0)
    assert read("prune", place)["n_pages"] == 1
    assert store.records.names("page") == ["used"]
    (path,) = [path for path in place.rglob("*.record") if b'"session"' in path.read_bytes()]
    path.write_bytes(path.read_bytes()[:-1])
    result = run("prune", place)
    assert result.exit_code == 2
    assert store.records.names("page") == ["used"]


def test_migrate_copies_to_another_place_secret_and_quantisation(
    store: GistStore, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = store.put(make_memory(slots=30), text="a")
    bare = store.put(make_memory(1), text="b", keep_source=False)
    monkeypatch.setenv("OTHER_SECRET", "another secret, long enough")
    arguments = ("--to", tmp_path / "other", "--to-secret-env", "OTHER_SECRET", "--quantise", "int8")
    result = run("migrate", place, *arguments)
    assert result.exit_code == 0, result.output
    assert f"left out: {bare}" in result.stderr
    report = read("migrate", place, *arguments, "--map", tmp_path / "map.json")
    assert report["without_source"] == [bare]
    assert json.loads((tmp_path / "map.json").read_text()) == report["markers"]
    assert marker in result.stdout
    assert report["markers"][marker] in result.stdout
    other = GistStore.open(tmp_path / "other", secret="another secret, long enough")
    assert other.source(report["markers"][marker]).recipe.dtype == "int8"
    assert sorted(store) == sorted([marker, bare])


def test_a_map_that_cannot_be_written_is_refused_before_anything_moves(
    store: GistStore, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = store.put(make_memory(), text="a")
    monkeypatch.setenv("OTHER_SECRET", "another secret, long enough")
    for path in (tmp_path / "missing" / "map.json", tmp_path):
        results = (
            run("rotate", place, "--new-secret-env", "OTHER_SECRET", "--map", path),
            run("migrate", place, "--to", tmp_path / "other", "--map", path),
        )
        assert all(result.exit_code == 2 and "--map" in result.stderr for result in results)
    assert list(store) == [marker]
    assert not (tmp_path / "other").exists()


def test_rotate_moves_to_another_secret(store: GistStore, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = store.put(make_memory(), text="a")
    store.put(make_memory(1), text="b", keep_source=False)
    monkeypatch.setenv("OTHER_SECRET", "another secret, long enough")
    report = read("rotate", place, "--new-secret-env", "OTHER_SECRET", "--drop")
    assert len(report["without_source"]) == 1
    assert len(store) == 0
    rows = read("ls", place, "--secret-env", "OTHER_SECRET")
    assert [row["marker"] for row in rows] == [report["markers"][marker]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ls", "missing"), ("no store in folder 'missing'", "--store")),
        (("ls", "memory://", "--secret-env", "NOT_SET"), ("NOT_SET",)),
        (("ls", "memory://", "--options", "{"), ("options", "JSON")),
        (("ls", "memory://", "--options", "[]"), ("options", "JSON")),
        (("ls", "ftps://somewhere"), ("ftps",)),
        (("prune", "memory://", "--older-than", "soon"), ("'soon'", "30d")),
        (("migrate", "memory://", "--to", "memory://", "--quantise", "int3"), ("'int3'",)),
        (("rotate", "memory://", "--new-secret-env", "NOT_SET"), ("NOT_SET",)),
    ],
)
def test_wrong_input_ends_in_one_line(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert all(word in line for word in words), line
