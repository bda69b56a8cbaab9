import pytest
import torch
from asking import TOKENIZER, asking_engine
from plain import random_ids, random_memory

from ultragist_rag.errors import ContextOverflowError, InputError, MemoryMismatchError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.pieces import as_batch, check_fit, to_prompt, with_lead


@pytest.fixture(scope="module")
def engine():
    return asking_engine()


def memory_of(engine, **settings):
    return random_memory(engine.attachment.model, 3, **settings)


def flat(prompt):
    return [piece if isinstance(piece, GistMemory) else piece.tolist() for piece in prompt]


def test_one_prompt_and_several_are_told_apart(engine):
    memory, ids = memory_of(engine), random_ids(3)
    assert as_batch("text") == ([["text"]], True)
    assert as_batch(["a", memory, "b"]) == ([["a", memory, "b"]], True)
    assert as_batch([["a"], [memory, "b"]]) == ([["a"], [memory, "b"]], False)
    assert as_batch(ids)[1]
    for wrong in ([], None, 5, ["a", ["b"]]):
        with pytest.raises(InputError):
            as_batch(wrong)


def test_neighbouring_texts_are_one_text(engine):
    whole = TOKENIZER("the quick brown", add_special_tokens=False)["input_ids"]
    assert flat(to_prompt(engine, ["the qu", "ick", " brown"])) == [[1], whole]


def test_the_lead_token_stands_once_at_the_head(engine):
    memory, other = memory_of(engine, lead_token=1), memory_of(engine, lead_token=1)
    assert flat(to_prompt(engine, [memory, other, random_ids(2)])) == [[1], memory, other, random_ids(2).tolist()]
    ids = torch.tensor([[1, 7, 8]])
    assert flat(to_prompt(engine, [ids, memory])) == [[1, 7, 8], memory]
    bare = memory_of(engine, lead_token=None)
    assert flat(to_prompt(engine, [bare, random_ids(2)]))[0] is bare


def test_ids_alone_stay_as_they_are(engine):
    assert flat(to_prompt(engine, [torch.tensor([[5, 6]]), torch.tensor([7])])) == [[5, 6], [7]]


def test_a_joint_memory_brings_its_own_first_token(engine):
    joint = memory_of(engine, joint=True)
    assert flat(to_prompt(engine, [joint, random_ids(2)]))[0] is joint
    assert flat(to_prompt(engine, ["text", joint]))[0] == [1]
    assert with_lead([joint], 1) == [joint]
    assert with_lead([], 1)[0].tolist() == [1]


def test_memories_with_different_lead_tokens_do_not_go_together(engine):
    with pytest.raises(MemoryMismatchError, match="lead token"):
        to_prompt(engine, [memory_of(engine, lead_token=1), memory_of(engine, lead_token=2), "x"])


def test_foreign_memories_are_refused():
    engine = asking_engine()
    engine.fingerprint = "mine"
    to_prompt(engine, [memory_of(engine, lead_token=1, fingerprint="mine"), "x"])
    with pytest.raises(MemoryMismatchError, match="fingerprint"):
        to_prompt(engine, [memory_of(engine, lead_token=1, fingerprint="other"), "x"])
    wide = asking_engine(num_key_value_heads=4)
    with pytest.raises(MemoryMismatchError, match="key heads"):
        to_prompt(engine, [memory_of(wide, lead_token=1), "x"])
    from dataclasses import replace

    from ultragist_rag.config import GistConfig

    memory = memory_of(engine, lead_token=1)
    to_prompt(engine, [replace(memory, config=GistConfig(window=8, ratio=2)), "x"])
    with pytest.raises(MemoryMismatchError, match="placement"):
        to_prompt(engine, [replace(memory, config=GistConfig(placement="interleave")), "x"])


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (torch.ones(2, 3, dtype=torch.long), "shape"),
        (torch.ones(3), "whole numbers"),
        (torch.tensor([[320]]), "320"),
        (torch.tensor([-1]), "-1"),
    ],
)
def test_ids_that_cannot_be_are_refused(engine, piece, message):
    with pytest.raises(InputError, match=message):
        to_prompt(engine, [piece])


def test_text_needs_a_tokenizer():
    engine = asking_engine(tokenizer=None)
    with pytest.raises(InputError, match="no tokenizer"):
        to_prompt(engine, ["text"])
    assert flat(to_prompt(engine, [torch.tensor([[5]])])) == [[5]]


def test_what_does_not_fit_is_refused_with_the_counts(engine):
    prompt = [memory_of(engine), random_ids(5)]
    check_fit([prompt], 2, 10)
    with pytest.raises(ContextOverflowError, match=r"11 positions \(3 memory slots \+ 5 tokens \+ 3 new tokens\).* 10"):
        check_fit([prompt], 3, 10)
