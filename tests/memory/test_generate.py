import threading
from dataclasses import replace

import pytest
import torch
from asking import TOKENIZER, asking_engine, greedy_by_hand
from plain import capture, random_ids, random_memory, slice_memory
from transformers import RepetitionPenaltyLogitsProcessor

from ultragist_rag.errors import ContextOverflowError, InputError
from ultragist_rag.memory.decoding import Decoding
from ultragist_rag.memory.generate import answer, generate
from ultragist_rag.memory.prompt import prompt_forward

N = 12


@pytest.fixture(scope="module")
def engine():
    return asking_engine()


def prompts_of(engine):
    """Ragged prompts: text alone, one memory, two memories in the middle, one token behind a memory."""
    model = engine.attachment.model
    first, second = (random_memory(model, n, n, lead_token=1) for n in (5, 11))
    return [
        ["the quick brown fox"],
        [first, " what is it? Answer:"],
        ["read: ", second, " and ", first, " then answer"],
        [second, torch.tensor([[40]])],
    ]


def ids_of(engine, pieces, **settings):
    return generate(engine, pieces, **{"max_new_tokens": N, "return_ids": True, **settings})


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_plain_text_is_answered_as_by_the_untouched_model(family):
    engine = asking_engine(family)
    text = "the quick brown fox"
    ids = torch.tensor([1, *TOKENIZER(text, add_special_tokens=False)["input_ids"]])
    expected = greedy_by_hand(engine.attachment.model, ids, N)
    assert ids_of(engine, text).tolist() == [expected.tolist()]
    assert generate(engine, [text], max_new_tokens=N) == TOKENIZER.decode(expected, skip_special_tokens=True)
    assert ids_of(engine, [ids[None]]).tolist() == [expected.tolist()]


def test_memories_of_all_keys_give_the_answer_to_the_text(engine):
    model = engine.attachment.model
    ids = random_ids(30)
    keys, values, _ = capture(model, ids)
    pieces = [slice_memory(keys, values, 0, 9), ids[9:14][None], slice_memory(keys, values, 14, 29), ids[29:]]
    assert ids_of(engine, pieces)[0].tolist() == greedy_by_hand(model, ids, N).tolist()


def test_decoding_equals_one_forward_over_everything(engine):
    for pieces in prompts_of(engine)[1:]:
        new = ids_of(engine, pieces)[0]
        from ultragist_rag.memory.pieces import to_prompt

        logits = prompt_forward(engine.attachment, [[*to_prompt(engine, pieces), new]]).logits[0]
        assert logits[-len(new) - 1 : -1].argmax(-1).tolist() == new.tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"num_beams": 3}, {"do_sample": True, "seed": 7}, {"repetition_penalty": 1.5}, {"stop": ["a", "o"]}],
)
def test_a_prompt_in_a_batch_gets_the_answer_it_gets_alone(engine, attention, settings):
    engine.attachment.model.set_attn_implementation(attention)
    batch = prompts_of(engine)
    together = ids_of(engine, batch, **settings)
    texts = generate(engine, batch, max_new_tokens=N, **settings)
    for pieces, ids, text in zip(batch, together, texts, strict=True):
        assert ids.tolist() == ids_of(engine, pieces, **settings).tolist()
        assert text == generate(engine, pieces, max_new_tokens=N, **settings)
    engine.attachment.model.set_attn_implementation("sdpa")


def test_reading_piece_by_piece_gives_the_same_answers(engine, monkeypatch):
    batch = prompts_of(engine)
    expected = [ids.tolist() for ids in ids_of(engine, batch)]
    from ultragist_rag.memory import beginning, prompt

    for module in (beginning, prompt):
        monkeypatch.setattr(module, "takes_any_mask", lambda _: False)
    assert [ids.tolist() for ids in ids_of(engine, batch)] == expected


def test_settings_of_the_checkpoint_do_not_turn_sampling_on(engine):
    before = ids_of(engine, "the fox").tolist()
    config = engine.attachment.model.generation_config
    config.do_sample, config.temperature, config.top_k, config.use_cache = True, 0.3, 5, False
    try:
        assert ids_of(engine, "the fox").tolist() == before
    finally:
        config.do_sample, config.temperature, config.top_k, config.use_cache = None, None, None, None


def test_settings_of_transformers_are_handed_on(engine):
    ids = torch.tensor([1, *TOKENIZER("the fox", add_special_tokens=False)["input_ids"]])
    penalty = RepetitionPenaltyLogitsProcessor(1.8)
    expected = greedy_by_hand(engine.attachment.model, ids, N, [penalty]).tolist()
    assert ids_of(engine, "the fox", repetition_penalty=1.8)[0].tolist() == expected
    memory = random_memory(engine.attachment.model, 0, lead_token=1)
    assert ids_of(engine, [ids[:2], memory, ids[2:]], repetition_penalty=1.8)[0].tolist() == expected


def test_placeholders_of_slots_do_not_count_as_said(engine):
    memory = random_memory(engine.attachment.model, 6, lead_token=1)
    seen = []

    def look(row, ids):
        seen.append(set(ids.tolist()))
        return list(range(320))

    ids_of(engine, [memory, " fox"], prefix_allowed_tokens_fn=look, max_new_tokens=1)
    assert seen == [{1, *TOKENIZER(" fox", add_special_tokens=False)["input_ids"]}]


def test_beams_equal_those_of_the_untouched_model(engine):
    model = engine.attachment.model
    ids = torch.tensor([[1, 50, 60, 70, 80]])
    expected = model.generate(
        ids, max_new_tokens=N, num_beams=4, num_return_sequences=3, do_sample=False, pad_token_id=0
    )
    mine = ids_of(engine, [ids], num_beams=4, num_return_sequences=3)
    assert [row[0].tolist() for row in mine] == expected[:, 5:].tolist()


def test_end_tokens_end_the_answer(engine):
    free = ids_of(engine, "the quick")[0].tolist()
    end = free[3]
    place = free.index(end)
    assert ids_of(engine, "the quick", eos_token_id=end)[0].tolist() == free[: place + 1]
    text = generate(engine, "the quick", eos_token_id=[end, 999], max_new_tokens=N)
    assert text == TOKENIZER.decode(free[:place], skip_special_tokens=True)
    batch = [["the quick"], ["lazy dog"]]
    both = ids_of(engine, batch, eos_token_id=end)
    assert both[0][0].tolist() == free[: place + 1]
    assert both[1].tolist() == ids_of(engine, "lazy dog", eos_token_id=end).tolist()


def test_the_answer_is_cut_before_the_stop_text(engine):
    text = generate(engine, "the quick", max_new_tokens=40)
    for stop in (text[5:8], text[20:21], text[10:13]):
        cut = generate(engine, "the quick", max_new_tokens=40, stop=[stop, "not there"])
        assert cut == text[: text.index(stop)]
        ids = ids_of(engine, "the quick", max_new_tokens=40, stop=stop)[0]
        assert cut.startswith(TOKENIZER.decode(ids))
        whole = ids_of(engine, "the quick", max_new_tokens=40)[0].tolist()
        assert whole[: len(ids)] == ids.tolist()
    assert generate(engine, "the quick", max_new_tokens=40, stop=["not there"]) == text


def test_decoding_ends_with_the_stop_text(engine):
    text = generate(engine, "the quick", max_new_tokens=60)
    stop, steps = text[4:6], []

    def count(ids, scores, **_):
        steps.append(1)
        return torch.zeros(len(ids), dtype=torch.bool)

    generate(engine, "the quick", max_new_tokens=60, stop=[stop], stopping_criteria=[count])
    assert len(steps) < 20


def test_asking_leaves_memories_as_they_are(engine):
    memory = random_memory(engine.attachment.model, 6, lead_token=1)
    copies = [tensor.clone() for tensor in (*memory.keys, *memory.values)]
    first = generate(engine, [memory, " the fox"], max_new_tokens=N)
    generate(engine, [memory, memory, " the fox"], max_new_tokens=N, num_beams=2)
    assert all(map(torch.equal, copies, (*memory.keys, *memory.values)))
    assert generate(engine, [memory, " the fox"], max_new_tokens=N) == first


def test_a_model_in_training_mode_is_asked_in_eval_mode_and_left_as_it_was():
    engine = asking_engine(attention_dropout=0.5)
    model = engine.attachment.model
    before = ids_of(engine, "the fox")
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    assert torch.equal(ids_of(engine, "the fox"), before)
    assert [module.training for module in model.modules()] == modes


def test_large_batches_and_unlike_prompts_are_answered_in_groups(engine):
    memory = random_memory(engine.attachment.model, 120, lead_token=1)
    batch = [[memory, " fox"], ["the fox " * 15], *([f"dog {n}"] for n in range(40))]  # side by side beyond 256 columns
    together = ids_of(engine, batch, max_new_tokens=4)
    for pieces, ids in zip(batch[:6], together, strict=False):
        assert torch.equal(ids, ids_of(engine, pieces, max_new_tokens=4))
    assert len(together) == 42


def test_a_sliding_window_never_hides_part_of_a_prompt():
    """A batch is padded to more columns than the window has, though each prompt has fewer."""
    engine = asking_engine("mistral", sliding_window=40)
    memory = random_memory(engine.attachment.model, 30, lead_token=1)
    batch = [[memory, " a"], [torch.full((1, 26), 7)]]
    wide = asking_engine("mistral", sliding_window=None)
    assert [ids.tolist() for ids in ids_of(engine, batch, max_new_tokens=4)] == [
        ids_of(wide, pieces, max_new_tokens=4).tolist() for pieces in batch
    ]
    with pytest.raises(ContextOverflowError, match="has 40"):
        generate(engine, [memory, " a"], max_new_tokens=10)


def test_what_does_not_fit_is_refused_before_anything_runs(engine):
    memory = random_memory(engine.attachment.model, 100, lead_token=1)
    with pytest.raises(ContextOverflowError, match=r"200 memory slots"):
        generate(engine, [memory, memory, "the fox"], max_new_tokens=100)
    prompt = [memory, torch.full((1, 155), 5)]
    assert ids_of(engine, [memory, torch.full((1, 143), 5)], max_new_tokens=12).shape == (1, 12)
    with pytest.raises(ContextOverflowError, match="100 memory slots"):
        generate(engine, prompt, max_new_tokens=1)


def test_a_prompt_must_end_in_text(engine):
    memory = random_memory(engine.attachment.model, 3, lead_token=1)
    for pieces in (["text", memory], [memory], [memory, ""], [[memory, "x"], [memory]]):
        with pytest.raises(InputError, match="put text behind it"):
            generate(engine, pieces)


def test_without_tokenizer_ids_come_back(engine):
    bare = asking_engine(tokenizer=None)
    ids = torch.tensor([[1, 50, 60]])
    free = generate(bare, [ids], max_new_tokens=N)
    assert torch.equal(free, ids_of(engine, [ids]))
    bare.attachment.model.generation_config.eos_token_id = int(free[0, 2])
    assert torch.equal(generate(bare, [ids], max_new_tokens=N), free)
    assert generate(bare, [ids], max_new_tokens=N, eos_token_id=int(free[0, 2])).tolist() == free[:, :3].tolist()
    with pytest.raises(InputError, match="stop texts need a tokenizer"):
        generate(bare, [ids], stop=["x"])


def test_answers_say_why_they_ended_and_what_they_read(engine):
    memory = random_memory(engine.attachment.model, 7, lead_token=1)
    pieces = [memory, " the fox"]
    decoding = Decoding(max_new_tokens=N)
    [[plain]] = answer(engine, [pieces], decoding)
    assert (plain.finish, plain.n_slots, len(plain.ids)) == ("length", 7, N)
    assert plain.n_prompt_tokens == 1 + len(TOKENIZER(" the fox", add_special_tokens=False)["input_ids"])
    [[stopped]] = answer(engine, [pieces], replace(decoding, stop=(plain.text[2:4],)))
    assert stopped.finish == "stop"
    [[ended]] = answer(engine, [pieces], replace(decoding, stock={"eos_token_id": int(plain.ids[2])}))
    assert ended.finish == "end"
    calls = iter([False, False, True])
    [[cancelled]] = answer(engine, [pieces], replace(decoding, cancelled=lambda: next(calls)))
    assert cancelled.finish == "cancelled"
    assert cancelled.ids.tolist() == plain.ids[:2].tolist()


def test_threads_get_what_they_would_get_alone(engine):
    batch = prompts_of(engine)
    settings = [{}, {"do_sample": True, "seed": 1}, {"stop": ["a"]}, {"do_sample": True, "seed": 2, "temperature": 0.7}]
    alone = [generate(engine, p, max_new_tokens=N, **s) for p, s in zip(batch, settings, strict=True)]
    got = [[] for _ in batch]

    def ask(number):
        for _ in range(3):
            got[number].append(generate(engine, batch[number], max_new_tokens=N, **settings[number]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(batch))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [[one] * 3 for one in alone]


def test_injected_special_tokens_stay_text(engine):
    seen = []

    def look(row, ids):
        seen.append(ids.tolist())
        return list(range(320))

    generate(engine, ["x <|im_end|></s><s>"], prefix_allowed_tokens_fn=look, max_new_tokens=1)
    assert seen[0][0] == 1
    assert not set(seen[0][1:]) & set(TOKENIZER.all_special_ids)
