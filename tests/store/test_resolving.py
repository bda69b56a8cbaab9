"""All texts of a prompt together: each memory once, slots capped, broken and unknown markers never passed on."""

import logging
import textwrap

import pytest

from ultragist_rag.errors import ContextOverflowError, GistNotFoundError, InputError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.store import GistStore, neutralise, parse_marker, to_marker
from ultragist_rag.store.shelf import Shelf

TEXTS = ["The first document.", "A second, longer document about Bahrain.", "A third."]
UNKNOWN = to_marker("a" * 26)


def evict(store, marker):
    assert store._shelf.place.delete((store._shelf.key(parse_marker(marker), ".gist"),)) == 1


def shape(rows):
    return [[piece if isinstance(piece, str) else "*" for piece in row] for row in rows]


@pytest.fixture
def markers(store, engine):
    return store.get_or_compress(engine, TEXTS)


@pytest.fixture
def reads(monkeypatch):
    """The ids of memories that were read."""
    made = []
    real = Shelf._read
    monkeypatch.setattr(Shelf, "_read", lambda self, name, expected: made.append(name) or real(self, name, expected))
    return made


def test_a_memory_stands_once_at_its_first_place_in_all_texts(store, engine, markers, same, reads):
    first, second, _ = markers
    rows = store.resolve_all(engine, [f"a {first} b {first.upper()} c", "", f"d {second}{first}", first])
    assert shape(rows) == [["a ", "*", " b  c"], [], ["d ", "*"], []]
    assert same(rows[0][1], engine.one(TEXTS[0]))
    assert same(rows[2][1], engine.one(TEXTS[1]))
    assert sorted(reads) == sorted(map(parse_marker, markers[:2]))
    assert store.resolve(engine, f"x {second}")[0] == "x "
    assert store.resolve_all(None, []) == []
    with pytest.raises(InputError, match="put a single one into a list"):
        store.resolve_all(engine, "a prompt")


def test_slots_are_capped_and_repeats_are_free(store, engine, markers, reads):
    sizes = [engine.one(text).slots for text in TEXTS]
    prompt = " ".join(markers * 50)
    assert shape([store.resolve(engine, prompt, max_slots=sum(sizes))])[0][0] == "*"
    with pytest.raises(ContextOverflowError, match=rf"2 of the 3 .* {sum(sizes[:2])} slots, .*max_slots is {sizes[0]}"):
        store.resolve(engine, prompt, max_slots=sizes[0])
    many = [*markers, *store.get_or_compress(engine, [f"Text number {number} of many." for number in range(40)])]
    reads.clear()
    with pytest.raises(ContextOverflowError, match="2 of the 43"):
        store.resolve(engine, " ".join(many), max_slots=sizes[0])
    assert 2 <= len(reads) <= 10  # not all
    for marker in markers:
        evict(store, marker)
    with pytest.raises(ContextOverflowError):
        store.resolve(engine, prompt, max_slots=sizes[0])


def test_many_evicted_memories_stop_being_made_when_the_slots_are_used_up(store, engine):
    markers = store.get_or_compress(engine, [f"text number {number}" for number in range(50)])
    for marker in markers:
        evict(store, marker)
    engine.batches.clear()
    with pytest.raises(ContextOverflowError):
        store.resolve_all(engine, markers, max_slots=20)
    assert sum(map(len, engine.batches)) == 16


def test_unknown_markers_are_an_error_or_harmless_text(store, engine, markers, caplog):
    prompt = f"see {UNKNOWN} and {markers[0]}, {UNKNOWN.upper()}"
    with pytest.raises(GistNotFoundError):
        store.resolve(engine, prompt)
    with caplog.at_level(logging.WARNING):
        rows = shape([store.resolve(engine, prompt, unknown="text")])
    assert rows == [[f"see {neutralise(UNKNOWN)} and ", "*", f", {neutralise(UNKNOWN.upper())}"]]
    assert "a" * 26 in caplog.text
    evict(store, markers[0])
    assert shape([store.resolve(engine, prompt, unknown="text")]) == rows
    evict(store, markers[0])
    assert shape([store.resolve(None, prompt, unknown="text")])[0] == [neutralise(prompt)]
    with pytest.raises((InputError, TypeError)):
        store.resolve(engine, prompt, unknown="ignore")


@pytest.mark.parametrize("width", [20, 29, 36])
@pytest.mark.parametrize("escape", [str, repr])
def test_wrapped_markers_are_mended(store, engine, markers, width, escape):
    wrapped = "\n".join(textwrap.wrap(markers[0], width, subsequent_indent="  "))
    assert wrapped != markers[0]
    pieces = store.resolve(engine, escape(f"Read this: {wrapped} now"))
    assert [type(piece) for piece in pieces] == [str, GistMemory, str]


@pytest.mark.parametrize("unknown", ["error", "text"])
@pytest.mark.parametrize("cut", [10, 11, 20, 36])
def test_a_cut_marker_is_refused_and_the_splitter_named(store, engine, markers, cut, unknown):
    for part in (f"text {markers[0][:cut]}", f"{markers[1]} {markers[0][:cut]} more", markers[0][:cut].upper()):
        with pytest.raises(InputError, match="text splitter"):
            store.resolve(engine, part, unknown=unknown)
        with pytest.raises(InputError, match="text splitter"):
            store.expand_markers(part)
        assert len(store.resolve(engine, neutralise(part))) == 1


@pytest.mark.parametrize("cut", range(1, 10))
def test_the_id_without_its_whole_head_is_refused(store, engine, markers, cut):
    with pytest.raises(InputError, match="part of a marker"):
        store.resolve(engine, f"\n{markers[0][cut:]} more")


def test_of_a_marker_cut_in_two_anywhere_one_half_is_refused(store, engine, markers):
    for cut in range(1, len(markers[0])):
        refused = 0
        for half in (markers[0][:cut], markers[0][cut:]):
            try:
                store.resolve(engine, f"Context: {half}\nAnswer:")
            except InputError:
                refused += 1
        assert refused, cut


def test_every_marker_that_may_not_be_read_gives_one_and_the_same_error(url, engine, caplog):
    secret = "a secret of the tests"
    mine = GistStore.open(url, "mine", secret=secret, ttl=1e9)
    theirs = GistStore.open(url, "theirs", secret=secret)
    strange = GistStore.open(url, "mine", secret="quite another secret of the tests")
    evicted, deleted = (mine.put(engine.one(text), text=text) for text in TEXTS[:2])
    expired = GistStore.open(url, "mine", secret=secret, ttl=1e-9).put(engine.one(TEXTS[2]), text=TEXTS[2])
    evict(mine, evicted)
    mine.delete(deleted)
    cases = {
        "forged": UNKNOWN,
        "foreign": theirs.put(engine.one("private"), text="private"),
        "other secret": strange.put(engine.one("private"), text="private"),
        "evicted": evicted,
        "deleted": deleted,
    }
    brief = GistStore.open(url, "mine", secret=secret, ttl=1e-9)
    with caplog.at_level(logging.DEBUG), pytest.raises(GistNotFoundError) as caught:
        brief.resolve(engine, f"Tell me: {expired}")
    messages = {str(caught.value).replace(parse_marker(expired), "ID")}
    for marker in cases.values():
        with caplog.at_level(logging.DEBUG), pytest.raises(GistNotFoundError) as caught:
            mine.resolve(None, f"Tell me: {marker}")
        assert type(caught.value) is GistNotFoundError
        messages.add(str(caught.value).replace(parse_marker(marker), "ID"))
    assert len(messages) == 1
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 6
    assert all("in namespace mine" in message for message in warned)
    assert not any(word in caplog.text for word in ("Tell me", "private", "document"))
    assert mine.resolve(engine, evicted)[0].slots == engine.one(TEXTS[0]).slots  # its source record is at hand


def test_what_an_attacker_writes_stays_text_in_two_namespaces_of_one_process(url, engine, same):
    one, two = (GistStore.open(url, name, secret="a secret of the tests") for name in ("one", "two"))
    (mine,), (theirs,) = one.get_or_compress(engine, ["ours"]), two.get_or_compress(engine, ["theirs"])
    document, question, result = (f"{words} {theirs}" for words in ("a document", "a question", "a tool result"))
    (poisoned,) = one.get_or_compress(engine, [neutralise(document)])
    pieces = one.resolve(engine, f"{poisoned} {mine} {neutralise(question)} {neutralise(result)}")
    memories = [piece for piece in pieces if not isinstance(piece, str)]
    assert [
        same(memory, engine.one(text)) for memory, text in zip(memories, [neutralise(document), "ours"], strict=True)
    ]
    assert theirs not in one.expand_markers(f"{poisoned} {mine}")
    for untrusted in (question, result):
        with pytest.raises(GistNotFoundError):
            one.resolve(engine, f"{mine} {untrusted}")
        assert shape([one.resolve(engine, f"{mine}{untrusted}", unknown="text")]) == [["*", neutralise(untrusted)]]
