"""Engines with chat templates: a plain one, one that knows tools in the manner of Hermes, one in that of Llama 3."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `scripted`

PLAIN = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

HERMES = (
    "{{ bos_token }}{% if tools %}[tools]{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    'Write <tool_call>{"name": ..., "arguments": ...}</tool_call>.{% endif %}'
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)

LLAMA = HERMES.replace("<tool_call>", "").replace("</tool_call>", "").replace("arguments", "parameters")


def _with_template(engine: Any, template: str | None) -> Any:
    """Return an engine over the same weights whose tokenizer has another chat template."""
    twin = copy.copy(engine)
    twin.__dict__.pop("tokenizer_fingerprint", None)
    twin.tokenizer = copy.deepcopy(engine.tokenizer)
    twin.tokenizer.chat_template = template
    return twin


@pytest.fixture(scope="session")
def chat_engine(text_engine: Any) -> Any:
    return _with_template(text_engine, PLAIN)


@pytest.fixture(scope="session")
def hermes_engine(text_engine: Any) -> Any:
    return _with_template(text_engine, HERMES)


@pytest.fixture(scope="session")
def llama_engine(text_engine: Any) -> Any:
    return _with_template(text_engine, LLAMA)


class Reading:
    """What models were given to read, and what they are made to answer instead of what they would.

    Attributes:
        prompts: Each as text; what a memory was made of stands in its place, within braces.
        specials: Special tokens of each prompt of a chat model, in order.
        answers: The next answers; when there are none left, the models' own.
    """

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.specials: list[list[str]] = []
        self.answers: list[str] = []

    def note(self, reader: Any, pieces: Any) -> None:
        tokenizer = reader.engine.tokenizer
        ids = [number for piece in pieces if isinstance(piece, torch.Tensor) for number in piece.tolist()]
        self.specials.append([tokenizer.decode(number) for number in ids if number in tokenizer.all_special_ids])
        self.prompts.append("".join(self._shown(reader, piece) for piece in pieces))

    def _shown(self, reader: Any, piece: Any) -> str:
        if isinstance(piece, str):
            return piece
        if isinstance(piece, torch.Tensor):
            return str(reader.engine.tokenizer.decode(piece))
        same = [m for m in reader.store if torch.equal(reader.store.get(m).keys[-1], piece.keys[-1])]
        return "{" + " = ".join(reader.store.source(marker).text for marker in same) + "}"


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Reading:
    from ultragist_rag.reader import Reader

    seen = Reading()
    answer = Reader.answer

    def answered(self: Reader, batch: Any, **settings: Any) -> Any:
        for pieces in batch:
            seen.note(self, pieces)
        answers = answer(self, batch, **settings)
        return [replace(one, text=seen.answers.pop(0)) if seen.answers else one for one in answers]

    monkeypatch.setattr(Reader, "answer", answered)
    return seen


@pytest.fixture(scope="session")
def with_template() -> Any:
    """Return the function that makes an engine with another chat template."""
    return _with_template
