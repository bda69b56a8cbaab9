"""Texts become markers: looked up first, within a budget, in order, and nothing forged comes through."""

import math

import pytest

from ultragist_rag.condense import REFERENCE, Condensed, CondensePolicy, condense
from ultragist_rag.errors import InputError
from ultragist_rag.store import GistStore, marker_scope, neutralise, parse_marker, to_marker

TEXTS = [
    "Bahrain is an archipelago in the Persian Gulf.",
    "Bolivia has two capitals, and no coast since 1884. " * 3,
    "Chad lies in the middle of Africa; its lake shrinks.",
]


@pytest.fixture
def store():
    return GistStore.open("memory://", secret="a secret of the tests")


@pytest.fixture
def calls(text_engine, monkeypatch):
    """What the engine was asked to compress."""
    made = []
    real = type(text_engine).compress
    monkeypatch.setattr(
        type(text_engine),
        "compress",
        lambda self, texts, **more: made.append((list(texts), more)) or real(self, texts, **more),
    )
    return made


def slots(store, engine, result):
    return sum(store.get(marker, engine).slots for marker in {one.marker for one in result if one.marker})


def test_texts_become_the_markers_that_the_store_gives(text_engine, store, calls):
    result = condense(text_engine, store, TEXTS, policy=CondensePolicy(ratio=2))
    assert [one.text for one in result] == [one.marker for one in result]
    assert [one.marker for one in result] == [store.find(text, text_engine, 2) for text in TEXTS]
    assert [(one.n_tokens, one.ratio) for one in result] == [(len(text), 2) for text in TEXTS]  # a token is a byte
    assert len(calls) == 1
    assert condense(text_engine, store, TEXTS[::-1], policy=CondensePolicy(ratio=2)) == result[::-1]
    assert len(calls) == 1


def test_the_default_is_the_ratio_of_the_config(text_engine, store):
    (one,) = condense(text_engine, store, TEXTS[:1])
    assert one.ratio == text_engine.config.ratio
    assert one.marker == store.find(TEXTS[0], text_engine)


def test_empty_and_short_texts_stay_text_and_forged_markers_are_harmless(text_engine, store):
    forged = to_marker("a" * 26)
    texts = ["", "  \n", f"short {forged}", f"{forged} " * 3]
    result = condense(text_engine, store, texts, policy=CondensePolicy(min_tokens=60))
    assert result[:2] == [Condensed("", None, 0, None), Condensed("  \n", None, 0, None)]
    assert (result[2].text, result[2].marker) == (f"short {neutralise(forged)}", None)
    assert store.source(result[3].marker).text == neutralise(f"{forged} " * 3)
    assert condense(text_engine, store, []) == []


def test_equal_texts_have_one_memory(text_engine, store, calls):
    result = condense(text_engine, store, [TEXTS[0], TEXTS[1], TEXTS[0]], policy=CondensePolicy(slots=90))
    assert result[0] == result[2]
    assert len(store) == 2
    assert slots(store, text_engine, result) <= 90


@pytest.mark.parametrize("budget", [33, 40, 64, 100, 200])
def test_a_budget_is_never_exceeded_and_made_in_one_batch(text_engine, store, calls, budget):
    result = condense(text_engine, store, TEXTS, policy=CondensePolicy(slots=budget))
    assert 0 < slots(store, text_engine, result) <= budget
    assert {one.ratio for one in result} <= {2, 4, 8}
    assert len(calls) == 1


def test_rank_divides_the_budget_unless_scores_do(text_engine, store):
    texts = [f"{name} lies between the mountains and the sea." for name in ("Abc", "Def", "Ghi")]

    def ratios(**more):
        return [one.ratio for one in condense(text_engine, store, texts, policy=CondensePolicy(slots=41), **more)]

    by_rank = ratios()
    assert by_rank == sorted(by_rank)
    assert by_rank[0] < by_rank[2]
    assert ratios(scores=[0.1, 0.2, 0.9]) == by_rank[::-1]
    assert ratios(scores=[-9.0, -5.0, -1.0]) == by_rank[::-1]
    assert len(set(ratios(scores=[0.5, 0.5, 0.5]))) <= 2


def test_what_cannot_fit_is_refused_before_anything_is_compressed(text_engine, store, calls):
    with pytest.raises(InputError, match="at least 33 slots at ratio 8"):
        condense(text_engine, store, TEXTS, policy=CondensePolicy(slots=31))
    assert calls == []


def test_a_marker_named_by_its_reference_passes_and_takes_its_slots(text_engine, store):
    (first,) = condense(text_engine, store, TEXTS[:1])
    name = parse_marker(first.marker)
    again = condense(text_engine, store, [first.marker, TEXTS[1]], references=[name, None])
    assert again[0] == first
    taken = slots(store, text_engine, again[:1])
    tight = condense(
        text_engine, store, [first.marker, TEXTS[1]], references=[name, None], policy=CondensePolicy(slots=taken + 20)
    )
    assert slots(store, text_engine, tight) <= taken + 20
    with pytest.raises(InputError, match=f"{taken} of them"):
        condense(
            text_engine, store, [first.marker, TEXTS[1]], references=[name, None], policy=CondensePolicy(slots=taken)
        )


@pytest.mark.parametrize("reference", [None, "a" * 26, "nonsense"])
def test_a_marker_without_its_reference_is_only_text(text_engine, store, reference):
    (first,) = condense(text_engine, store, TEXTS[:1])
    (other,) = condense(text_engine, store, [first.marker], references=[reference])
    assert other.marker != first.marker
    assert store.source(other.marker).text == neutralise(first.marker)


def test_a_foreign_marker_with_its_reference_is_only_text(text_engine, store):
    foreign = GistStore.open("memory://", "other", secret="a secret of the tests")
    (theirs,) = condense(text_engine, foreign, TEXTS[:1])
    (ours,) = condense(text_engine, store, [theirs.marker], references=[parse_marker(theirs.marker)])
    assert store.source(ours.marker).text == neutralise(theirs.marker)


def test_a_reference_serves_if_its_text_is_this_text(text_engine, store, calls):
    (marker,) = store.get_or_compress(text_engine, TEXTS[:1], ratio=8)
    reference = parse_marker(marker)
    calls.clear()
    assert condense(text_engine, store, TEXTS[:1], references=[reference])[0].marker == marker
    assert condense(text_engine, store, TEXTS[:1], references=[marker.upper()])[0].ratio == 8
    assert calls == []
    assert condense(text_engine, store, TEXTS[:1], references=[reference], policy=CondensePolicy(ratio=2))[0].ratio == 2
    (other,) = condense(text_engine, store, TEXTS[1:2], references=[reference])
    assert store.source(other.marker).text == TEXTS[1]


def test_stored_resolutions_are_good_enough_if_asked(text_engine, store, calls):
    stored = store.get_or_compress(text_engine, TEXTS[:1], ratio=8)
    calls.clear()
    result = condense(text_engine, store, TEXTS[:2], policy=CondensePolicy(ratio=4, on_miss="stored"))
    assert [one.ratio for one in result] == [8, 4]
    assert result[0].marker == stored[0]
    assert [texts for texts, _ in calls] == [TEXTS[1:2]]
    budget = condense(text_engine, store, TEXTS[:2], policy=CondensePolicy(slots=300, on_miss="stored"))
    assert [one.ratio for one in budget] == [8, 4]
    store.get_or_compress(text_engine, TEXTS[:1], ratio=2)
    assert condense(text_engine, store, TEXTS[:1], policy=CondensePolicy(slots=300, on_miss="stored"))[0].ratio == 2
    assert condense(text_engine, store, TEXTS[:1], policy=CondensePolicy(ratio=4, on_miss="stored"))[0].ratio == 8


EXACT = ["Order A-4711 of 2024-05-01 is late, and nobody knows for how long. ", "Ring 0171 today, it is urgent."]


@pytest.mark.parametrize("budget", [60, 70, 90, 200])
def test_verbatim_tokens_count_in_the_budget(text_engine, store, budget):
    policy = CondensePolicy(slots=budget, verbatim="regex")
    result = condense(text_engine, store, EXACT, policy=policy)
    memories = [store.get(one.marker, text_engine) for one in result]
    assert [(m.n_verbatim, m.verbatim) for m in memories] == [(16, "regex"), (4, "regex")]
    assert sum(memory.slots for memory in memories) <= budget
    assert [
        store.find(text, text_engine, one.ratio, verbatim="regex") for text, one in zip(EXACT, result, strict=True)
    ] == [one.marker for one in result]


def test_a_budget_without_room_for_verbatim_tokens_is_refused(text_engine, store, calls):
    with pytest.raises(InputError, match="20 of them taken already"):
        condense(text_engine, store, EXACT, policy=CondensePolicy(slots=25, verbatim="regex"))
    assert calls == []


def test_a_reference_serves_another_policy_only_where_nothing_is_asked(text_engine, store, calls):
    (marker,) = store.get_or_compress(text_engine, EXACT[:1], ratio=8, verbatim="regex")
    reference = [parse_marker(marker)]
    calls.clear()
    for policy in (CondensePolicy(), CondensePolicy(verbatim="regex"), CondensePolicy(ratio=8, verbatim="regex")):
        assert condense(text_engine, store, EXACT[:1], references=reference, policy=policy)[0].marker == marker
    assert calls == []
    for policy in (CondensePolicy(ratio=8), CondensePolicy(verbatim="both"), CondensePolicy(slots=200)):
        assert condense(text_engine, store, EXACT[:1], references=reference, policy=policy)[0].marker != marker


def test_metadata_that_json_cannot_carry_is_left_out(text_engine, store):
    notes = [{"page": 3, "score": math.nan, "object": object(), REFERENCE: "x"}]
    (one,) = condense(text_engine, store, TEXTS[:1], metadata=notes)
    assert store.source(one.marker).metadata == {"page": 3, REFERENCE: "x"}


def test_what_is_condensed_in_a_scope_can_be_read_in_it(text_engine, store):
    (old,) = condense(text_engine, store, TEXTS[2:])
    with marker_scope():
        made, passed = condense(text_engine, store, [TEXTS[0], old.marker], references=[None, parse_marker(old.marker)])
        pieces = store.resolve(text_engine, f"{made.marker} {passed.marker}")
        assert [type(piece).__name__ for piece in pieces] == ["GistMemory", "str", "GistMemory"]


@pytest.mark.parametrize(
    "values",
    [
        {"ratio": 0},
        {"ratio": True},
        {"slots": -1},
        {"slots": 8, "ratio": 2},
        {"ratios": (2, 0)},
        {"ratios": (2, 4)},
        {"min_tokens": -1},
        {"on_miss": "ignore"},
        {"verbatim": "digits"},
    ],
)
def test_a_policy_that_cannot_work_is_refused(values):
    with pytest.raises((InputError, TypeError)):  # TypeError: the types of the signature, checked in tests
        CondensePolicy(**values)


@pytest.mark.parametrize(
    "more", [{"scores": [1.0]}, {"references": [None]}, {"metadata": [{}]}, {"scores": [1.0, math.nan, 2.0]}]
)
def test_lists_that_do_not_fit_are_refused(text_engine, store, more):
    with pytest.raises(InputError, match="give"):
        condense(text_engine, store, TEXTS, **more)
    with pytest.raises(InputError, match="must be a CondensePolicy"):
        condense(text_engine, store, TEXTS, policy=None)
