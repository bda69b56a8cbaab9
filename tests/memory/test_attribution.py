"""Scores of sources against attention of the whole prompt token by token, and what asking for them leaves alone."""

from dataclasses import replace

import pytest
import torch
from asking import asking_engine
from plain import capture, random_ids, random_memory, slice_memory, slow_logits
from transformers import DynamicCache

from ultragist_rag.errors import InputError, UnsupportedModelError
from ultragist_rag.memory import attribution
from ultragist_rag.memory.attribution import attention_mass, attention_sources, check_sources, leave_one_out_sources
from ultragist_rag.memory.decoding import Decoding
from ultragist_rag.memory.generate import answer, ask
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.pieces import to_prompt
from ultragist_rag.memory.stream import stream
from ultragist_rag.modeling.rope import model_cos_sin, rotate
from ultragist_rag.testing import FAMILIES

N = 9
SETTINGS = {"max_new_tokens": N, "eos_token_id": 0}


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def engine():
    return asking_engine()


def prompts_of(engine):
    """Ragged prompts: memories of other sizes, in the middle, one behind the other, none, one token at the end."""
    first, second, third = (random_memory(engine.attachment.model, n, n, lead_token=1) for n in (5, 11, 2))
    batch = [
        ["read: ", second, " and ", first, third, " then answer"],
        [first, " what is it? Answer:"],
        ["no memory"],
        [third, second, torch.tensor([[40]])],
    ]
    return [to_prompt(engine, pieces) for pieces in batch]


def answers_of():
    return [random_ids(length, length) for length in (7, 1, 3, 4)]


def slow_mass(model, prompt, answer_ids):
    """Eager attention, one token of prompt and answer at a time on a cache that is put together by hand."""
    model.set_attn_implementation("eager")
    cache, position, rows, owners = DynamicCache(), 0, [], []
    pieces = [*prompt, answer_ids[:-1]]
    for piece in pieces:
        if isinstance(piece, GistMemory):
            places = torch.arange(position, position + piece.slots)[None]
            for layer, (keys, values) in enumerate(zip(piece.keys, piece.values, strict=True)):
                cache.update(rotate(keys, *model_cos_sin(model, places)), values, layer)
            owners += [sum(isinstance(one, GistMemory) for one in pieces[: pieces.index(piece)])] * piece.slots
            position += piece.slots
            continue
        for token in piece:
            out = model(
                token.view(1, 1),
                past_key_values=cache,
                position_ids=torch.tensor([[position]]),
                output_attentions=True,
            )
            rows.append(torch.stack(out.attentions)[:, 0, :, 0])  # (layers, heads, columns)
            owners.append(-1)
            position += 1
    model.set_attn_implementation("sdpa")
    n_memories = sum(isinstance(piece, GistMemory) for piece in prompt)
    asked = rows[-len(answer_ids) :]
    mass = torch.zeros(*asked[0].shape[:2], n_memories + 1)
    for row in asked:
        for column in range(row.shape[-1]):
            mass[..., owners[column]] += row[..., column] / len(asked)
    return mass[..., :-1], mass[..., -1]


class TestAttention:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_mass_is_that_of_full_attention_token_by_token(self, family):
        engine = asking_engine(family)
        prompts = prompts_of(engine)
        for prompt, ids, mass in zip(prompts, answers_of(), attention_mass(engine, prompts, answers_of()), strict=True):
            memories, rest = slow_mass(engine.attachment.model, prompt, ids)
            torch.testing.assert_close(mass.memories, memories, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(mass.rest, rest, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(mass.memories.sum(-1) + mass.rest, torch.ones_like(mass.rest))

    def test_mass_of_memories_of_all_keys_is_that_of_the_text(self, engine):
        model = engine.attachment.model
        ids, said = random_ids(24), random_ids(6, 1)
        keys, values, _ = capture(model, ids)
        prompt = [ids[:4], slice_memory(keys, values, 4, 13), ids[13:15], slice_memory(keys, values, 15, 20), ids[20:]]
        (mass,) = attention_mass(engine, [prompt], [said])
        model.set_attn_implementation("eager")
        full = model(torch.cat((ids, said))[None], output_attentions=True).attentions
        model.set_attn_implementation("sdpa")
        rows = torch.stack(full)[:, 0, :, 23:29].mean(2)  # those that predict the answer
        expected = torch.stack((rows[..., 4:13].sum(-1), rows[..., 15:20].sum(-1)), dim=-1)
        torch.testing.assert_close(mass.memories, expected, atol=1e-5, rtol=1e-4)

    def test_a_batch_gives_what_each_prompt_gives_alone_however_much_is_read_at_a_time(self, engine, monkeypatch):
        prompts, answers = prompts_of(engine), answers_of()
        together = attention_sources(engine, prompts, answers)
        alone = [attention_sources(engine, [prompt], [ids])[0] for prompt, ids in zip(prompts, answers, strict=True)]
        monkeypatch.setattr(attribution, "_BLOCK", 2)
        monkeypatch.setattr(attribution, "_ROWS", 3)
        in_parts = attention_sources(engine, prompts, answers)
        for several in (alone, in_parts):
            for scores, expected in zip(several, together, strict=True):
                assert scores == pytest.approx(expected, abs=1e-5)
        assert [len(scores) for scores in together] == [3, 1, 0, 2]
        assert [sum(scores) for scores in together if scores] == pytest.approx([1, 1, 1])

    def test_scores_are_shares_of_the_mass_per_slot(self, engine):
        (mass,) = attention_mass(engine, prompts_of(engine)[:1], answers_of()[:1])
        assert mass.slots == (11, 5, 2)
        per_slot = mass.memories.mean((0, 1)) / torch.tensor([11, 5, 2])
        assert mass.scores() == pytest.approx((per_slot / per_slot.sum()).tolist(), abs=1e-5)
        flat = replace(mass, memories=torch.tensor([11.0, 5, 2]).expand_as(mass.memories))
        assert flat.scores() == pytest.approx([1 / 3] * 3)
        assert replace(mass, memories=torch.zeros_like(mass.memories)).scores() == [0, 0, 0]

    def test_prompts_read_piece_by_piece_give_the_same(self, engine, monkeypatch):
        prompts, answers = prompts_of(engine), answers_of()
        expected = attention_sources(engine, prompts, answers)
        monkeypatch.setattr("ultragist_rag.memory.prompt.takes_any_mask", lambda _: False)
        for scores, others in zip(attention_sources(engine, prompts, answers), expected, strict=True):
            assert scores == pytest.approx(others, abs=1e-5)

    @pytest.mark.parametrize("implementation", ["sdpa", "eager"])
    def test_the_model_is_as_it_was_also_after_an_error(self, implementation, monkeypatch):
        engine = asking_engine(attention_dropout=0.5)
        model, prompts = engine.attachment.model, prompts_of(engine)
        expected = attention_sources(engine, prompts, answers_of())
        hooks = [len(layer._forward_hooks) for layer in engine.attachment.layers]
        model.set_attn_implementation(implementation)
        model.train()
        assert attention_sources(engine, prompts, answers_of())[0] == pytest.approx(expected[0], abs=1e-5)
        layer = model.model.layers[1].self_attn
        forward = layer.forward
        monkeypatch.setattr(layer, "forward", lambda **kwargs: (forward(**kwargs)[0], None))
        with pytest.raises(UnsupportedModelError, match="layer 1 gives no weights"):
            attention_sources(engine, prompts, answers_of())
        assert model.config._attn_implementation == implementation
        assert all(module.training for module in model.modules())
        assert [len(layer._forward_hooks) for layer in engine.attachment.layers] == hooks
        assert engine.attachment.lock.acquire(blocking=False)
        engine.attachment.lock.release()


class TestLeaveOneOut:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_scores_are_what_the_answer_loses_token_by_token(self, family):
        engine = asking_engine(family)
        for prompt, ids in zip(prompts_of(engine), answers_of(), strict=True):
            places = [place for place, piece in enumerate(prompt) if isinstance(piece, GistMemory)]
            shown = [prompt, *([*prompt[:place], *prompt[place + 1 :]] for place in places)]
            logits = [slow_logits(engine.attachment.model, [*one, ids])[-len(ids) - 1 : -1] for one in shown]
            whole, *without = (row.log_softmax(-1).gather(1, ids[:, None]).mean() for row in logits)
            expected = [float(whole - one) for one in without]
            assert leave_one_out_sources(engine, prompt, ids) == pytest.approx(expected, abs=1e-4)

    def test_a_lead_token_stands_where_a_joint_memory_stood(self, engine):
        joint = random_memory(engine.attachment.model, 6, joint=True)
        other = random_memory(engine.attachment.model, 4, 1, lead_token=1)
        text, ids = random_ids(5), random_ids(3, 2)
        whole, without = (
            slow_logits(engine.attachment.model, [*prompt, ids])[-4:-1].log_softmax(-1).gather(1, ids[:, None]).mean()
            for prompt in ([joint, other, text], [torch.tensor([1]), other, text])
        )
        scores = leave_one_out_sources(engine, [joint, other, text], ids)
        assert scores[0] == pytest.approx(float(whole - without), abs=1e-4)


class TestAnswers:
    @pytest.mark.parametrize("kind", ["attention", "leave-one-out"])
    @pytest.mark.parametrize(
        "settings", [{}, {"num_beams": 2, "num_return_sequences": 2}, {"stop": ["a", "o"]}], ids=["", "beams", "stop"]
    )
    def test_sources_are_added_to_the_same_answers(self, engine, kind, settings):
        prompts, decoding = prompts_of(engine), Decoding.of({**SETTINGS, **settings})
        plain = answer(engine, prompts, decoding)
        told = answer(engine, prompts, decoding, sources=kind)
        for prompt, several, before in zip(prompts, told, plain, strict=True):
            for one, same in zip(several, before, strict=True):
                assert same.sources is None
                assert (one.text, one.ids.tolist(), one.finish) == (same.text, same.ids.tolist(), same.finish)
                expected = (
                    attention_sources(engine, [prompt], [one.ids])[0]
                    if kind == "attention"
                    else leave_one_out_sources(engine, prompt, one.ids)
                )
                assert one.sources == pytest.approx(expected, abs=1e-5)

    def test_the_front_door_gives_answers_as_generate_gives_texts(self, engine):
        one, *_, last = prompts_of(engine)
        assert ask(engine, one, **SETTINGS).sources is None
        told = ask(engine, [one, last], sources="attention", **SETTINGS)
        assert [len(each.sources) for each in told] == [3, 2]
        pairs = ask(engine, one, sources="attention", num_return_sequences=2, do_sample=True, seed=1, **SETTINGS)
        assert [len(each.sources) for each in pairs] == [3, 3]

    def test_an_answer_without_tokens_was_read_from_nothing(self, engine):
        prompt, nothing = prompts_of(engine)[0], torch.empty(0, dtype=torch.long)
        assert attention_sources(engine, [prompt], [nothing]) == [[0, 0, 0]]
        assert leave_one_out_sources(engine, prompt, nothing) == [0, 0, 0]
        assert attention_sources(engine, [], []) == []

    def test_a_cancelled_answer_has_no_sources(self, engine):
        decoding = Decoding(max_new_tokens=N, cancelled=lambda: True)
        [[one], *_] = answer(engine, prompts_of(engine), decoding, sources="attention")
        assert one.sources is None
        assert one.finish == "cancelled"

    def test_what_cannot_be_told_is_refused(self, engine):
        prompt = prompts_of(engine)[0]
        with pytest.raises(InputError, match="'attention', 'leave-one-out' or None"):
            check_sources("yes")
        with pytest.raises(InputError, match="progressive"):
            ask(engine, prompt, sources="attention", progressive=True)
        with pytest.raises(InputError, match="ends in a memory"):
            attention_sources(engine, [prompt[:-1]], [torch.tensor([1])])
        with pytest.raises(InputError, match="1 answers to 2 prompts"):
            attention_sources(engine, [prompt, prompt], [torch.tensor([1])])


class TestStreams:
    @pytest.mark.parametrize("kind", ["attention", "leave-one-out"])
    @pytest.mark.parametrize("stop", [[], ["a", "o"]])
    def test_a_stream_knows_its_sources_at_the_end(self, engine, kind, stop):
        prompt, settings = prompts_of(engine)[0], {**SETTINGS, "stop": stop}
        expected = ask(engine, prompt, sources=kind, **settings)
        with stream(engine, prompt, sources=kind, **settings) as parts:
            assert parts.sources is None
            assert "".join(parts) == expected.text
            assert parts.sources == pytest.approx(expected.sources, abs=1e-5)

    def test_a_stream_that_is_closed_or_was_not_asked_knows_none(self, engine):
        prompt = prompts_of(engine)[0]
        plain = stream(engine, prompt, **SETTINGS)
        assert list(plain)
        assert plain.sources is None
        closed = stream(engine, prompt, sources="attention", max_new_tokens=200, return_ids=True)
        next(closed)
        closed.close()
        assert closed.sources is None

    @pytest.mark.parametrize("stop", [[], ["a", "o", "e", "i", "u", "t", "n", "s"]])
    def test_an_error_reaches_who_reads(self, engine, stop, monkeypatch):
        def fail(*_):
            raise UnsupportedModelError("no weights")

        monkeypatch.setattr("ultragist_rag.memory.stream.with_sources", fail)
        parts = stream(engine, prompts_of(engine)[0], sources="attention", **{**SETTINGS, "stop": stop})
        with pytest.raises(UnsupportedModelError):
            _ = list(parts) and parts.sources
