"""A store that version 1 of the formats wrote is read: tests/store/data/format1 was made by that version."""

import shutil
from pathlib import Path

import pytest
import torch

from ultragist_rag.store import GistStore

OLD = Path(__file__).parent / "data" / "format1"
TEXT = "a document of format 1"
FOLDER = "default-ldb5zt7ybix2e2jw"


@pytest.fixture
def old_store(tmp_path):
    shutil.copytree(OLD, tmp_path / "gists" / FOLDER)
    return GistStore.open(tmp_path / "gists", secret="a secret of the tests")


def test_a_memory_and_its_source_record_of_format_1_are_found_and_read(old_store, engine, same):
    (marker,) = old_store
    assert old_store.find(TEXT, engine) == marker
    assert same(old_store.get(marker, engine), engine.one(TEXT))
    record = old_store.source(marker)
    assert (record.text, record.metadata, record.stored) == (TEXT, {"page": 3}, 1_700_000_000)
    assert old_store.get_or_compress(engine, [TEXT]) == [marker]
    assert engine.batches == []


def test_an_evicted_memory_of_format_1_is_made_again_in_the_format_of_today(old_store, engine, tmp_path, same):
    (path,) = (tmp_path / "gists" / FOLDER).glob("*.gist")
    old = path.read_bytes()
    path.unlink()
    marker = f"ultragist0{path.stem}0"
    assert same(old_store.get(marker, engine), engine.one(TEXT))
    assert b'"format":"1"' in old[:200]
    assert b'"format":"2"' in path.read_bytes()[:200]
    assert torch.equal(old_store.get(marker).keys[0], engine.one(TEXT).keys[0])
