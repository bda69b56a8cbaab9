import pytest
import torch
from patience import PATIENCE

from ultragist_rag.errors import InputError
from ultragist_rag.testing import tiny_engine

N = 20


@pytest.fixture(scope="module", params=["append", "interleave"])
def engine(request):
    return tiny_engine(window=8, ratio=4, placement=request.param)


def ids_of(n, seed=0):
    return torch.randint(3, 100, (1, n), generator=torch.Generator().manual_seed(seed))


def test_greedy_ids_equal_one_forward_over_everything_at_every_token(engine):
    ids = ids_of(21)
    expected = ids
    for _ in range(N):
        expected = torch.cat((expected, engine.forward(expected).logits[:, -1:].argmax(-1)), dim=1)
    mine = engine.generate([ids], max_new_tokens=N, progressive=True)
    assert mine.tolist() == expected[:, 21:].tolist()
    assert list(engine.stream([ids], max_new_tokens=N, progressive=True)) == mine[0].tolist()
    split = engine.generate([ids[:, :9], ids[:, 9:]], max_new_tokens=N, progressive=True)
    assert torch.equal(split, mine)


def test_a_memory_at_the_head_goes_on(engine):
    ids = ids_of(30)
    whole = engine.generate([ids], max_new_tokens=N, progressive=True)
    memory = engine.forward(ids[:, :19]).memory
    slots = memory.slots
    assert torch.equal(engine.generate([memory, ids[:, 19:]], max_new_tokens=N, progressive=True), whole)
    assert memory.slots == slots


def test_a_text_longer_than_the_model_is_read():
    engine = tiny_engine(window=8, ratio=4, model={"max_position_embeddings": 64})
    assert engine.generate([ids_of(150)], max_new_tokens=5, progressive=True).shape == (1, 5)


def test_batches_draws_and_end_tokens(engine):
    batch = [[ids_of(12)], [ids_of(7, 1)]]
    together = engine.generate(batch, max_new_tokens=N, progressive=True)
    assert [row.tolist() for row in together] == [
        engine.generate(prompt, max_new_tokens=N, progressive=True).tolist() for prompt in batch
    ]
    settings = {"max_new_tokens": N, "progressive": True, "do_sample": True, "seed": 3}
    draws = engine.generate(batch[0], num_return_sequences=3, **settings)
    assert len({tuple(draw[0].tolist()) for draw in draws}) == 3
    assert torch.equal(draws[0], engine.generate(batch[0], **settings))
    free = together[0][0].tolist()
    ended = engine.generate(batch[0], max_new_tokens=N, progressive=True, eos_token_id=free[4])
    assert ended[0].tolist() == free[: free.index(free[4]) + 1]


def test_leaving_a_stream_frees_the_model(engine):
    shown = engine.stream([ids_of(12)], max_new_tokens=2000, progressive=True)
    next(shown)
    shown.close()
    assert engine.attachment.lock.acquire(timeout=PATIENCE)
    engine.attachment.lock.release()


def test_what_does_not_go_with_one_stream_is_refused(engine):
    memory = engine.forward(ids_of(12)).memory
    for pieces, settings in (
        ([ids_of(3), memory, ids_of(3)], {}),
        ([memory, memory, ids_of(3)], {}),
        ([ids_of(3)], {"num_beams": 2}),
        ([ids_of(3)], {"repetition_penalty": 1.2}),
    ):
        with pytest.raises(InputError, match="progressive"):
            engine.generate(pieces, progressive=True, **settings)
