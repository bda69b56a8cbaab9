"""Write the turns of a session as a model reads them: with its chat template, or as plain lines.

Is        one turn in, its token ids out, cut into parts; what stands in front of all turns; what opens an answer.
Flow      memory.chat, memory.roles -> [rendering] -> session.
Change    how a turn looks without a template, which conversation stands around a turn while it is rendered.
Not here  which parts are compressed -> layout/session_plan.py; who said what -> turns.py.
Holds     the ids of a turn do not depend on the turns around it; where the template allows it, ids in a row are what
          it writes for the whole conversation.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from ultragist_rag.errors import InputError
from ultragist_rag.memory.roles import render_fitting
from ultragist_rag.memory.text import TextCodec
from ultragist_rag.session.turns import Said
from ultragist_rag.types import TokenIds

__all__ = ["PlainRendering", "Rendering", "TemplateRendering", "TemplateChoice", "make_rendering"]

TemplateChoice = Literal["chat", "plain"]

_USER = Said(role="user", content="a")
_ASSISTANT = Said(role="assistant", content="b")
_CALL_ID = "call00001"


class Rendering(ABC):
    """Writes turns for one tokenizer."""

    kind: TemplateChoice
    head: TokenIds
    """Ids at the head of every conversation, perhaps none."""

    stop: tuple[str, ...] = ()
    """Texts that end an answer."""

    def __init__(self, tokenizer: Any) -> None:
        self.codec = TextCodec.of(tokenizer)

    @property
    @abstractmethod
    def digest(self) -> str:
        """Changes with everything that the ids of a turn depend on, the tokenizer aside."""

    @abstractmethod
    def texts(self, said: Said, longest: int) -> list[str] | None:
        """Return the documents that stand for a turn, or None where they are the ids of `parts`."""

    @abstractmethod
    def parts(self, said: Said, longest: int) -> list[TokenIds]:
        """Return the ids of a turn, cut into parts of at most `longest`."""

    @abstractmethod
    def question(self, said: Said) -> TokenIds:
        """Return the ids of the last turn and of what opens the answer."""


class PlainRendering(Rendering):
    """Lines such as `user: text`."""

    kind: TemplateChoice = "plain"
    stop = ("\nuser:", "\nsystem:", "\ntool:")

    def __init__(self, tokenizer: Any, system: str | None) -> None:
        """Write for a tokenizer; the system text is the first line."""
        super().__init__(tokenizer)
        self.head = self.codec.encode(_line(Said(role="system", content=system)) if system else "", first=True)

    @property
    def digest(self) -> str:
        """The manner of writing has no settings."""
        return "plain-1"

    def texts(self, said: Said, longest: int) -> list[str]:
        """Cut the line of a turn, at spaces where it can be."""
        rest, cut = _line(said), []
        while len(rest) > 1 and len(self.codec.encode(rest)) > longest:
            place = self._fitting(rest, longest)
            cut.append(rest[:place])
            rest = rest[place:]
        return [*cut, rest]

    def parts(self, said: Said, longest: int) -> list[TokenIds]:
        """Encode the texts of a turn as they stand behind others."""
        return [self.codec.encode(text, first=False) for text in self.texts(said, longest)]

    def question(self, said: Said) -> TokenIds:
        """Write the question and open the answer."""
        return self.codec.encode(f"{_line(said)}assistant:", first=False)

    def _fitting(self, text: str, longest: int) -> int:
        """Return a place, behind a space if there is one, in front of which a text has few enough tokens."""
        low, high = 1, len(text)
        while high - low > 1:
            middle = (low + high) // 2
            if len(self.codec.encode(text[:middle])) <= longest:
                low = middle
            else:
                high = middle
        space = text.rfind(" ", 0, low)
        return space + 1 if space > 0 else low


class TemplateRendering(Rendering):
    """The chat template of the tokenizer.

    What a template writes for a turn is the difference of two renderings: of a short conversation behind which the turn
    may come, and of that conversation with the turn.
    """

    kind: TemplateChoice = "chat"

    def __init__(self, tokenizer: Any, system: str | None) -> None:
        """Write for a tokenizer.

        Args:
            tokenizer: With a chat template.
            system: Text for the head of the conversation. Where the template has no place for it there, it stands in
                front of the question, as some templates do themselves.

        Raises:
            InputError: If the template writes a turn otherwise when others come, or there is none.
        """
        super().__init__(tokenizer)
        self._tokenizer = tokenizer
        self._fronts: dict[str, TokenIds] = {}
        self._turn(_ASSISTANT)
        head = self._head([])
        if head is None:
            raise InputError("the chat template writes the first turn otherwise than later ones: use template='plain'.")
        with_system = self._head([Said(role="system", content=system)]) if system else None
        self.head = head if with_system is None else with_system
        self._in_question = f"{system}\n\n" if system and with_system is None else ""

    @property
    def digest(self) -> str:
        """Follow the template."""
        return hashlib.sha256(str(self._tokenizer.chat_template).encode()).hexdigest()[:32]

    def texts(self, said: Said, longest: int) -> None:
        """Compress ids: template and text cannot be told apart in a document."""

    def parts(self, said: Said, longest: int) -> list[TokenIds]:
        """Return what the template writes for a turn, whatever the turns around it are."""
        return list(self._turn(said).split(longest))

    def question(self, said: Said) -> TokenIds:
        """Return the last turn and what opens the answer."""
        said = replace(said, content=self._in_question + said.content)
        return self._turn(said, add_generation_prompt=True)

    def _head(self, system: list[Said]) -> TokenIds | None:
        """Return what stands in front of the first turn; None if system text or turn are not written as they are."""
        first = self._turn(_USER)
        ids = self._render([*system, _USER])
        cut = len(ids) - len(first)
        return ids[:cut] if cut >= 0 and torch.equal(ids[cut:], first) else None

    def _turn(self, said: Said, **settings: Any) -> TokenIds:
        if not said.role:
            raise InputError("a turn has no role, but the chat template needs one: give it, or use template='plain'.")
        refused: InputError | None = None
        for before in _may_follow(said):
            try:
                return self._behind(before, said, settings)
            except InputError as error:
                refused = refused or error
        raise refused or InputError(f"there is no place for the role {said.role!r}.")

    def _behind(self, before: Sequence[Said], said: Said, settings: dict[str, Any]) -> TokenIds:
        key = " ".join(one.digest for one in before)
        front = self._fronts.get(key)
        if front is None:
            front = self._render(before)
            if said.role != "tool":  # the call in front of a tool's turn has the id of that turn
                self._fronts[key] = front
        ids = self._render([*before, said], **settings)
        if not torch.equal(ids[: len(front)], front) or len(ids) == len(front):
            raise InputError(
                f"the chat template writes earlier turns otherwise when a turn of the role {said.role} follows: use "
                "template='plain'."
            )
        return ids[len(front) :]

    def _render(self, conversation: Sequence[Said], **settings: Any) -> TokenIds:
        messages = [said.to_message() for said in conversation]
        settings = {"add_generation_prompt": False, **settings}
        pieces = render_fitting(self._tokenizer, messages, **settings)
        return torch.cat([piece for piece in pieces if isinstance(piece, torch.Tensor)])


def make_rendering(tokenizer: Any, choice: TemplateChoice | None, system: str | None = None) -> Rendering:
    """Return how a session writes its turns.

    Args:
        tokenizer: The tokenizer.
        choice: `chat`, `plain`, or None for the chat template if there is one that can be used.
        system: Text at the head of the conversation.

    Returns:
        The rendering.

    Raises:
        InputError: If there is no tokenizer, or no such rendering, or the chat template cannot be used.
    """
    if tokenizer is None:
        raise InputError("a session needs a tokenizer, but the engine has none: load the engine with one.")
    if choice not in (None, "chat", "plain"):
        raise InputError(f"template is {choice!r}, but must be 'chat', 'plain' or None.")
    if choice == "plain" or (choice is None and not getattr(tokenizer, "chat_template", None)):
        return PlainRendering(tokenizer, system)
    try:
        return TemplateRendering(tokenizer, system)
    except InputError:
        if choice == "chat":
            raise
        return PlainRendering(tokenizer, system)


def _line(said: Said) -> str:
    calls = [f"\n{call.get('name')}({call.get('arguments', {})})" for call in said.tool_calls]
    who = f"{said.role} {said.name}" if said.name else said.role
    return f"{who}: {said.content}{''.join(calls)}\n" if who else said.content


def _may_follow(said: Said) -> list[list[Said]]:
    """Return short conversations behind which a turn may come, the likeliest first."""
    call = {"name": "f", "arguments": {}, "id": said.tool_call_id or _CALL_ID}
    calling = replace(_ASSISTANT, content="", tool_calls=[call])
    if said.role == "assistant":
        return [[_USER], [_USER, calling, Said(role="tool", content="c", tool_call_id=_CALL_ID)]]
    if said.role == "tool":
        return [[_USER, calling]]
    return [[_USER, _ASSISTANT]]
