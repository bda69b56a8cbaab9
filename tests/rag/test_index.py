"""Nothing is unpickled; an index is whole or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ultragist_rag import CorruptGistError, InputError
from ultragist_rag.rag import HashingEmbeddings, Passage, PassageIndex, load_embeddings

TEXTS = [
    "Norway - Economy\nNorway sells oil, gas and fish.",
    "Norway - Climate\nWinters are long and cold in the north of the country.",
    "Chad - Economy\nChad sells oil and cotton.",
    "Chad - People\nThe capital is N'Djamena; people speak French and Arabic.",
]


def make_index() -> PassageIndex:
    passages = [Passage(text, f"{number}.md", "", "") for number, text in enumerate(TEXTS)]
    return PassageIndex.build(passages, HashingEmbeddings(), {"model": "tiny"})


@pytest.mark.parametrize(
    ("question", "source"),
    [("What does Norway sell?", "0.md"), ("How cold is the winter?", "1.md"), ("Capital of Chad?", "3.md")],
)
def test_question_finds_its_passage(question: str, source: str) -> None:
    index = make_index()
    found = index.search(question, k=3)
    assert found[0][0].source == source
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_search_equals_cosines_computed_by_hand() -> None:
    index = make_index()
    question = "oil and cotton in Chad"
    cosines = index.embeddings.embed_documents(TEXTS) @ index.embeddings.embed_query(question)
    order = np.argsort(-cosines)
    found = index.search(question, k=9)
    assert [int(passage.source[0]) for passage, _ in found] == order.tolist()
    np.testing.assert_allclose([score for _, score in found], cosines[order], atol=1e-6)


def test_saved_equals_unsaved(tmp_path: Path) -> None:
    index = make_index()
    index.save(tmp_path / "new")
    loaded = PassageIndex.load(tmp_path / "new")
    assert loaded.passages == index.passages
    assert loaded.about == {"model": "tiny"}
    ours, theirs = index.search("cold oil", 4), loaded.search("cold oil", 4)
    assert [passage for passage, _ in ours] == [passage for passage, _ in theirs]
    np.testing.assert_allclose([score for _, score in ours], [score for _, score in theirs], atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["index.faiss", "index.json"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def raise_format(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "format": 99}), "utf-8")


def drop_passage(path: Path) -> None:
    record = json.loads(path.read_text("utf-8"))
    record["passages"].pop()
    path.write_text(json.dumps(record), "utf-8")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("index.faiss", truncate),
        ("index.faiss", flip),
        ("index.faiss", Path.unlink),
        ("index.json", truncate),
        ("index.json", raise_format),
        ("index.json", drop_passage),
        ("index.json", lambda path: path.write_text("[]", "utf-8")),
    ],
)
def test_damaged_index_is_refused(tmp_path: Path, name: str, damage: object) -> None:
    make_index().save(tmp_path)
    assert callable(damage)
    damage(tmp_path / name)
    with pytest.raises(CorruptGistError, match=r"is corrupt .* Make it again"):
        PassageIndex.load(tmp_path)


def test_missing_index_and_bad_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no index"):
        PassageIndex.load(tmp_path)
    with pytest.raises(InputError, match="question is empty"):
        make_index().search("  ")
    with pytest.raises(InputError, match="k is 0"):
        make_index().search("oil", 0)
    with pytest.raises(InputError, match="no passage to index"):
        PassageIndex.build([], HashingEmbeddings())


def test_vectors_have_length_one_and_unknown_embeddings_are_refused() -> None:
    vectors = load_embeddings("hashing").embed_documents(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    with pytest.raises(InputError, match="embeddings 'word2vec' are unknown"):
        load_embeddings("word2vec")
