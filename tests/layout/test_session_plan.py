"""A session never outgrows its slots, and old segments have no lower ratio than young ones."""

import random

import pytest

from ultragist_rag.errors import ContextOverflowError, InputError
from ultragist_rag.layout.budget import slots_of
from ultragist_rag.layout.session_plan import ARCHIVED, RECENT, Entry, SessionPlan, plan_session

WINDOW = 16


def random_sessions():
    draw = random.Random(3)
    for _ in range(150):
        ladder = tuple(sorted(draw.sample((2, 3, 4, 8, 16, 32), draw.randrange(1, 5))))
        slots, recent = draw.randrange(8, 80), draw.choice((0, 0, 7, 40))
        lengths = [draw.randrange(1, 50) for _ in range(draw.randrange(1, 60))]
        pins, left = set(), slots
        for place in draw.sample(range(len(lengths)), len(lengths) // 8):
            size = slots_of(lengths[place], ladder[0], WINDOW)
            if size <= left:
                pins.add(place)
                left -= size
        yield lengths, pins, slots, ladder, recent


def n_slots(lengths, plan):
    return sum(
        slots_of(length, ratio, WINDOW)
        for length, ratio in zip(lengths, plan, strict=True)
        if ratio not in (ARCHIVED, RECENT)
    )


def test_the_slots_of_all_segments_never_exceed_the_budget_and_the_older_has_no_lower_ratio():
    for lengths, pins, slots, ladder, recent in random_sessions():
        plan = plan_session(lengths, pins, slots, ladder, WINDOW, recent=recent)
        assert n_slots(lengths, plan) <= slots
        raw = [place for place, ratio in enumerate(plan) if ratio == RECENT]
        assert raw == list(range(len(plan) - len(raw), len(plan)))
        assert all(plan[place] in (ladder[0], RECENT) for place in pins)
        ages = [ratio or 99 for place, ratio in enumerate(plan) if place not in pins]
        assert ages == sorted(ages, reverse=True)


def test_appending_one_by_one_gives_what_a_replay_gives_and_changes_little():
    for lengths, pins, slots, ladder, recent in random_sessions():
        plan, before = SessionPlan(slots, ladder, WINDOW, recent), {}
        n_changes = 0
        for place, length in enumerate(lengths):
            plan.append(Entry(place, length, place in pins))
            after = plan.ratios()
            n_changes += sum(after.get(name) != ratio for name, ratio in before.items())
            before = after
            if place % 8:
                continue
            pinned = [pin for pin in pins if pin <= place]
            replayed = plan_session(lengths[: place + 1], pinned, slots, ladder, WINDOW, recent=recent)
            assert after == {place: ratio for place, ratio in enumerate(replayed) if ratio not in (ARCHIVED, RECENT)}
            assert plan.n_slots == n_slots(lengths[: place + 1], replayed)
        assert n_changes <= len(lengths) * len(ladder)


def test_the_newest_segments_stay_tokens_as_few_as_are_enough():
    for lengths, pins, slots, ladder, recent in random_sessions():
        plan = plan_session(lengths, pins, slots, ladder, WINDOW, recent=recent)
        kept = [length for length, ratio in zip(lengths, plan, strict=True) if ratio == RECENT]
        assert sum(kept) >= recent or len(kept) == len(lengths)
        assert not kept or sum(kept[1:]) < recent


def test_slots_at_any_ratio_count():
    plan = SessionPlan(slots=10, ladder=(2, 4), window=WINDOW)
    for place in range(4):
        plan.append(Entry(place, 4, extra=3))
        assert plan.n_slots <= 10
    assert plan.ratios() == {2: 4, 3: 2}


def test_a_copy_goes_on_by_itself():
    plan = SessionPlan(slots=10, ladder=(2, 4), window=WINDOW, recent=4)
    for place in range(5):
        plan.append(Entry(place, 4))
    before, copy = plan.ratios(), plan.copy()
    copy.append(Entry(5, 16))
    assert plan.ratios() == before != copy.ratios()
    assert plan.recent_names() == [4]
    assert copy.recent_names() == [5]


def test_more_pins_than_slots_are_refused():
    with pytest.raises(ContextOverflowError, match="pinned turns take 6 slots"):
        plan_session([6, 6], [0, 1], slots=5, ladder=(2,), window=WINDOW)


@pytest.mark.parametrize("ladder", [(), (4, 2), (2, 2), (1, 2), (2, True)])
def test_ladders_that_do_not_rise_are_refused(ladder):
    with pytest.raises(InputError, match="ladder"):
        plan_session([4], [], 10, ladder, WINDOW)
