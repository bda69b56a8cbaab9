import pytest
import torch
from plain import as_attachment, capture, plain_model, random_ids, random_memory, slice_memory, slow_logits

from ultragist_rag.errors import InputError
from ultragist_rag.memory.prompt import count_prompt, prompt_forward

TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}  # torch 2.6 rounds these logits by up to 1.5e-5


@pytest.fixture(scope="module")
def model():
    return plain_model()


def mixed_prompt(model, seed=0):
    """Two memories between three texts."""
    first, second = random_memory(model, 5, seed + 1), random_memory(model, 9, seed + 2)
    return [random_ids(4, seed), first, random_ids(3, seed + 3), second, random_ids(6, seed + 4)]


def test_a_token_sees_exactly_the_slots_and_tokens_in_front_of_it(model):
    prompt = mixed_prompt(model)
    torch.testing.assert_close(
        prompt_forward(as_attachment(model), [prompt]).logits[0], slow_logits(model, prompt), **TOLERANCE
    )


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("sequential", [False, True])
def test_plain_text_equals_the_untouched_model(family, sequential):
    model = plain_model(family)
    ids = random_ids(20)
    out = prompt_forward(as_attachment(model), [[ids[:7], ids[7:8], ids[8:]]], sequential=sequential)
    torch.testing.assert_close(out.logits[0], model(ids[None]).logits[0], **TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_memory_of_all_keys_equals_the_text(family):
    model = plain_model(family)
    ids = random_ids(30)
    keys, values, logits = capture(model, ids)
    prompt = [ids[:4], slice_memory(keys, values, 4, 15), ids[15:18], slice_memory(keys, values, 18, 23), ids[23:]]
    out = prompt_forward(as_attachment(model), [prompt])
    expected = torch.cat((logits[:4], logits[15:18], logits[23:]))
    torch.testing.assert_close(out.logits[0], expected, **TOLERANCE)


def test_scaled_rotary_embeddings_are_followed():
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    model = plain_model(rope_parameters=yarn)
    ids = random_ids(20)
    keys, values, logits = capture(model, ids)
    out = prompt_forward(as_attachment(model), [[slice_memory(keys, values, 0, 12), ids[12:]]])
    torch.testing.assert_close(out.logits[0], logits[12:], **TOLERANCE)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (1, 1, 0, 3)])
@pytest.mark.parametrize("sequential", [False, True])
def test_pieces_stand_in_any_order(model, order, sequential):
    pieces = [random_ids(3, 1), random_memory(model, 4, 2), random_memory(model, 6, 3), random_ids(5, 4)]
    prompt = [pieces[i] for i in order]
    out = prompt_forward(as_attachment(model), [prompt], sequential=sequential)
    torch.testing.assert_close(out.logits[0], slow_logits(model, prompt), **TOLERANCE)


def ragged_batch(model):
    shared = random_memory(model, 7, 40)
    return [
        mixed_prompt(model),
        [random_ids(1, 5), shared],
        [random_ids(17, 6)],
        [random_memory(model, 30, 7), shared, random_ids(2, 8)],
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("sequential", [False, True])
def test_a_batch_equals_single_prompts(attention, sequential):
    model = plain_model(attention=attention)
    batch = ragged_batch(model)
    together = prompt_forward(as_attachment(model), batch, sequential=sequential)
    for prompt, logits in zip(batch, together.logits, strict=True):
        assert torch.isfinite(logits).all()
        torch.testing.assert_close(logits, slow_logits(model, prompt), **TOLERANCE)
    assert together.lengths == tuple(sum(count_prompt(prompt)) for prompt in batch)
    assert together.filled.sum(1).tolist() == list(together.lengths)


@pytest.mark.parametrize("sequential", [False, True])
def test_the_cache_holds_every_key_once(model, sequential):
    batch = ragged_batch(model)
    state = prompt_forward(as_attachment(model), batch, wanted="none", sequential=sequential)
    assert state.logits == ()
    for row, prompt in enumerate(batch):
        alone = prompt_forward(as_attachment(model), [prompt], wanted="none", sequential=True)
        for layer, other in zip(state.cache.layers, alone.cache.layers, strict=True):
            mine = layer.keys[row][:, state.filled[row]]
            theirs = other.keys[0][:, alone.filled[0]]
            torch.testing.assert_close(mine.sum(1), theirs.sum(1), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(mine.pow(2).sum(1), theirs.pow(2).sum(1), atol=1e-4, rtol=1e-4)
        ids = torch.cat([piece for piece in prompt if isinstance(piece, torch.Tensor)])
        assert state.ids[row][state.ids[row] >= 0].tolist() == ids.tolist()


def test_only_the_wanted_logits_are_computed(model):
    batch = ragged_batch(model)
    everything = prompt_forward(as_attachment(model), batch).logits
    last = prompt_forward(as_attachment(model), batch, wanted="last").logits
    some = [torch.tensor([0, 2]), torch.tensor([0]), torch.tensor([], dtype=torch.long), torch.tensor([1, 0])]
    picked = prompt_forward(as_attachment(model), batch, wanted=some).logits
    for full, final, chosen, index in zip(everything, last, picked, some, strict=True):
        torch.testing.assert_close(final, full[-1:], **TOLERANCE)
        torch.testing.assert_close(chosen, full[index], **TOLERANCE)


def test_gradients_equal_those_of_the_slow_loop(model):
    def gradients(run):
        memories = [random_memory(model, n, n) for n in (5, 8)]
        tensors = [t.requires_grad_(True) for m in memories for t in (*m.keys, *m.values)]
        weight = model.model.layers[0].self_attn.q_proj.weight
        prompts = [
            [random_ids(2), memories[0], random_ids(4, 1)],
            [memories[1], random_ids(3, 2), memories[0], random_ids(2, 3)],
        ]
        loss = sum(logits.logsumexp(-1).sum() for logits in run(prompts))
        return torch.autograd.grad(loss, [*tensors, weight])

    mine = gradients(lambda prompts: prompt_forward(as_attachment(model), prompts).logits)
    slow = gradients(lambda prompts: [slow_logits(model, prompt) for prompt in prompts])
    in_sequence = gradients(lambda prompts: prompt_forward(as_attachment(model), prompts, sequential=True).logits)
    for gradient, expected, other in zip(mine, slow, in_sequence, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(other, expected, atol=1e-4, rtol=1e-4)


def test_prompts_without_tokens_or_pieces_fill_the_cache_alone(model):
    memory = random_memory(model, 4)
    for sequential in (False, True):
        state = prompt_forward(as_attachment(model), [[memory], []], sequential=sequential)
        assert [tuple(logits.shape) for logits in state.logits] == [(0, 101), (0, 101)]
        assert state.lengths == (4, 0)
        assert state.cache.get_seq_length() == 4
    assert prompt_forward(as_attachment(model), [[]], wanted="none").cache.get_seq_length() == 0


def test_an_empty_memory_is_nothing(model):
    ids = random_ids(6)
    for sequential in (False, True):
        prompts = [[ids[:2], random_memory(model, 0), ids[2:]]]
        out = prompt_forward(as_attachment(model), prompts, sequential=sequential)
        torch.testing.assert_close(out.logits[0], model(ids[None]).logits[0], **TOLERANCE)


def test_memories_are_cast_to_the_model(model):
    memory = random_memory(model, 5)
    half = memory.to(torch.bfloat16)
    ids = random_ids(4)
    mine = prompt_forward(as_attachment(model), [[half, ids]]).logits[0]
    torch.testing.assert_close(mine, prompt_forward(as_attachment(model), [[half.to(torch.float32), ids]]).logits[0])
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("piece", [torch.ones(1, 3, dtype=torch.long), torch.ones(3)])
def test_bad_pieces_are_refused(model, piece):
    with pytest.raises(InputError, match="token ids of shape"):
        prompt_forward(as_attachment(model), [[piece]])
    with pytest.raises(InputError, match="no prompt"):
        prompt_forward(as_attachment(model), [])


def test_autocast_in_bf16_stays_near_and_gives_gradients(model):
    batch = ragged_batch(model)
    exact = prompt_forward(as_attachment(model), batch).logits
    memory = random_memory(model, 7, 3).to(torch.bfloat16)
    leaf = memory.keys[0].requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = prompt_forward(as_attachment(model), batch).logits
        loss = prompt_forward(as_attachment(model), [[memory, random_ids(3)]]).logits[0].float().logsumexp(-1).sum()
    loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0
    for mine, full in zip(rough, exact, strict=True):
        assert torch.nn.functional.cosine_similarity(mine.float(), full, dim=-1).min() > 0.98


def test_gradient_checkpointing_changes_nothing():
    from ultragist_rag.config import GistConfig
    from ultragist_rag.modeling.attach import attach

    model = plain_model().train()
    batch = ragged_batch(model)

    def run(attachment):
        memory = random_memory(model, 6, 9)
        leaf = memory.keys[1].requires_grad_(True)
        out = prompt_forward(attachment, [*batch, [memory, random_ids(3)], [random_ids(2), memory, random_ids(4)]])
        weight = model.model.layers[0].mlp.up_proj.weight
        return out.logits, torch.autograd.grad(sum(logits.logsumexp(-1).sum() for logits in out.logits), [leaf, weight])

    with attach(model, GistConfig(window=8)) as attachment:
        logits, gradients = run(attachment)
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        same_logits, same_gradients = run(attachment)
        assert prompt_forward(attachment, [[random_ids(3)]]).logits[0].shape == (3, 101)
    for mine, expected in zip((*same_logits, *same_gradients), (*logits, *gradients), strict=True):
        torch.testing.assert_close(mine, expected, **TOLERANCE)
