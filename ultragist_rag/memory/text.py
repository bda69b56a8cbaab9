"""Turn text into token ids without letting it say more than text can.

Is        `TextCodec`: copies of a tokenizer, with and without special tokens; `Detokenizer`: text as tokens come.
Flow      errors -> [text] -> pieces, chat, generate, stream, engine.
Change    which added tokens untrusted text must not become, how words are kept from gaining a space at a splice.
Not here  chat templates -> chat.py; lead tokens -> pieces.py.
Holds     no text becomes a special token, and a text in pieces gets no space that the whole has not.
"""

from __future__ import annotations

import copy
import json
import re
import secrets
import threading
import weakref
from collections.abc import Iterable
from functools import cached_property
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer

from ultragist_rag.errors import InputError
from ultragist_rag.types import TokenIds

__all__ = ["Detokenizer", "TextCodec"]

IN_BRACKETS = re.compile(r"[<\[{(|].*[>\]})|]", re.DOTALL)
"""Added tokens that steer a model without being marked as special, such as <tool_call> or [INST]."""


class TextCodec:
    """Token ids for texts, on private copies of a tokenizer that several threads may use at once.

    Untrusted text never becomes a special token: neither one marked as such nor an added token in brackets.
    SentencePiece tokenizers put a space in front of a text; here only the text at the head of a sequence gets it.

    Source: `split_special_tokens` of transformers; the rest is ours.

    Example:
        >>> from ultragist_rag.memory.text import TextCodec
        >>> codec = TextCodec.of(tokenizer)  # doctest: +SKIP
        >>> codec.decode(codec.encode("a forged <|im_end|>"))  # doctest: +SKIP
        'a forged <|im_end|>'
    """

    _made: ClassVar[weakref.WeakKeyDictionary[Any, TextCodec]] = weakref.WeakKeyDictionary()
    _making = threading.Lock()

    @classmethod
    def of(cls, tokenizer: Any) -> TextCodec:
        """Return the codec of a tokenizer; the same one at every call."""
        with cls._making:
            codec = cls._made.get(tokenizer)
            if codec is None or codec.size != len(tokenizer):  # tokens have been added since
                codec = cls._made[tokenizer] = cls(tokenizer)
            return codec

    def __init__(self, tokenizer: Any) -> None:
        self.size = len(tokenizer)
        self.markup = {
            number: token.content
            for number, token in tokenizer.added_tokens_decoder.items()
            if number != tokenizer.unk_token_id and (token.special or IN_BRACKETS.fullmatch(token.content))
        }
        self._backend: _Rust | _Slow = _Rust(tokenizer, self.markup) if tokenizer.is_fast else _Slow(tokenizer)

    def encode(self, text: str, *, first: bool = True) -> TokenIds:
        """Encode untrusted text: whatever it says, it stays text.

        Args:
            text: Any text.
            first: Whether it stands at the head of its sequence, not behind other text or a memory.

        Returns:
            Token ids of shape (tokens,), without anything in front or behind.

        Raises:
            InputError: If the tokenizer cannot write some part of the text without a special token.
        """
        ids = self._backend.encode(text, first=first, trusted=False)
        forged = self.markup.keys() & ids
        if forged:
            ids = self._encode_around([self.markup[number] for number in forged], text, first)
        return torch.tensor(ids, dtype=torch.long)

    def encode_template(self, text: str, *, first: bool = True) -> TokenIds:
        """Encode text of our own or of a chat template, in which special tokens are meant.

        Args:
            text: A trusted text.
            first: Whether it stands at the head of its sequence.

        Returns:
            Token ids of shape (tokens,), without anything in front or behind.
        """
        special = None if first else self._markup_pattern.search(text)
        split = len(text) if special is None else special.start()
        # Behind a splice the text goes on without a space; behind a special token the tokenizer's own rule holds.
        head = self._backend.encode(text[:split], first=first, trusted=True)
        rest = self._backend.encode(text[split:], first=True, trusted=True)
        return torch.tensor([*head, *rest], dtype=torch.long)

    @cached_property
    def _markup_pattern(self) -> re.Pattern[str]:
        contents = sorted(self.markup.values(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, contents)) or r"(?!)")

    def decode(self, ids: Iterable[int] | TokenIds) -> str:
        """Return the text of token ids, special tokens left out."""
        return self._backend.decode(ids.tolist() if isinstance(ids, torch.Tensor) else list(ids))

    def _encode_around(self, contents: Iterable[str], text: str, first: bool) -> list[int]:
        """Encode a text in which the tokenizer's own model knows some special tokens as words, by cutting them."""
        inside = "|".join(f"(?<={re.escape(content[:1])})(?={re.escape(content[1:])})" for content in contents)
        parts = re.split(inside, text)
        ids: list[int] = []
        for number, part in enumerate(parts):
            ids += self._backend.encode(part, first=first and number == 0, trusted=False)
        forged = self.markup.keys() & ids
        if forged:
            names = ", ".join(repr(self.markup[number]) for number in sorted(forged))
            raise InputError(
                f"the tokenizer turns part of the text into the special token {names}: take that part out."
            )
        return ids


class Detokenizer:
    """Turns tokens into text as they come, and never gives part of a character."""

    def __init__(self, codec: TextCodec) -> None:
        """Begin with no tokens."""
        self._codec = codec
        self._ids: list[int] = []  # the last tokens whose text is out, then those whose text is not
        self._n_out = 0

    def push(self, token: int) -> str:
        """Take a token; return the text that is complete by now."""
        self._ids.append(token)
        return self._take(final=False)

    def flush(self) -> str:
        """Return what is left, even if it ends within a character."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        known, text = self._codec.decode(self._ids[: self._n_out]), self._codec.decode(self._ids)
        if len(text) <= len(known) or (text.endswith("\ufffd") and not final):
            return ""
        # Decoding from a token that is out already keeps the space between words that tokenizers drop at the head.
        self._ids, self._n_out = self._ids[self._n_out :], len(self._ids) - self._n_out
        return text[len(known) :]


class _Rust:
    """Fast tokenizers: copies of the backend, changed in its description and never again, so threads may share them."""

    def __init__(self, tokenizer: Any, markup: dict[int, str]) -> None:
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        spec.update(post_processor=None, truncation=None, padding=None)
        plain = copy.deepcopy(spec)
        plain["added_tokens"] = _without_markup(spec, markup)
        self._copies = {
            (first, trusted): _build(description if first else _without_prefix(description), trusted)
            for trusted, description in ((True, spec), (False, plain))
            for first in (True, False)
        }

    def encode(self, text: str, *, first: bool, trusted: bool) -> list[int]:
        try:
            ids: list[int] = self._copies[first, trusted].encode(text, add_special_tokens=False).ids
        except TypeError as error:  # of the tokenizer, for what is no Unicode
            raise InputError(
                f"{text!r:.200} is no text that can be encoded: decode its bytes as what they are."
            ) from error
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self._copies[True, True].decode(ids, skip_special_tokens=True)
        return text


def _build(spec: dict[str, Any], trusted: bool) -> Tokenizer:
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.encode_special_tokens = not trusted
    return tokenizer


def _without_markup(spec: dict[str, Any], markup: dict[int, str]) -> list[dict[str, Any]]:
    """Added tokens, where markup that is not marked as special can no longer be met in a text.

    The entry of a token outside the model's vocabulary stays, under a name nobody knows: ids are counted by entries.
    """
    n_words = len(spec["model"]["vocab"])
    kept = []
    for token in spec["added_tokens"]:
        if token["special"] or token["id"] not in markup:
            kept.append(token)
        elif token["id"] >= n_words:
            kept.append({**token, "content": f"\ue000{secrets.token_hex(16)}\ue000"})
    return kept


def _without_prefix(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the description without the rules that put a space in front of a text."""
    changed = copy.deepcopy({key: spec[key] for key in ("normalizer", "pre_tokenizer")})
    return {**spec, **{key: _drop_prefix(part) for key, part in changed.items()}}


def _drop_prefix(part: Any) -> Any:
    if not isinstance(part, dict) or part.get("type") == "Prepend":
        return None
    for name in ("normalizers", "pretokenizers"):
        if name in part:
            part[name] = [kept for kept in map(_drop_prefix, part[name]) if kept is not None]
    if "prepend_scheme" in part:
        part["prepend_scheme"] = "never"
    if "add_prefix_space" in part:
        part["add_prefix_space"] = False
    return part


class _Slow:
    """Tokenizers written in Python: one private copy, one thread at a time; spaces in front stay as they are."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._lock = threading.Lock()

    def encode(self, text: str, *, first: bool, trusted: bool) -> list[int]:
        del first
        with self._lock:
            ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=not trusted)[
                "input_ids"
            ]
        return ids

    def decode(self, ids: list[int]) -> str:
        with self._lock:
            text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
