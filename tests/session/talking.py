"""Small sessions, and what a model would say next in them."""

import torch

from ultragist_rag.memory.prompt import prompt_forward

CHATML = (
    "{% for m in messages %}<|bos|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant\n{% endif %}"
)
SIZES = {"slots": 40, "recent": 40, "segment_tokens": 32}


def fill(session, n_turns, start=0):
    """Say something of its own in every turn; return the ids of the turns."""
    roles = ("user", "assistant")
    return [
        session.append(roles[number % 2], f"turn {number}: " + "word " * (number % 4) + str(number**3))
        for number in range(start, start + n_turns)
    ]


def next_logits(session, question="and now?"):
    pieces = session.pieces(question)
    with torch.no_grad(), session._maker.engine.attachment.lock:
        state = prompt_forward(session._maker.engine.attachment, [pieces], wanted="last")
    return state.logits[0]


def same(one, other):
    return torch.allclose(next_logits(one), next_logits(other), rtol=0, atol=1e-5)
