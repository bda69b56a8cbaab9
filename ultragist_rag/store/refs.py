"""Markers: how a memory travels through frameworks that carry only text.

Is        ids (HMAC over everything that determines a memory) and the words that carry them, `ultragist0...0`.
Flow      config -> [refs] -> store. Imports no torch.
Paper     none: the marker alphabet was chosen by trying what text pipelines leave alone.
Change    the form of a marker; what an id depends on (raise FORMAT: every id changes with it).
Not here  where the secret comes from -> keys.py; what lies under an id -> codec.py, source.py.
Holds     an id is a function of secret, namespace, recipe and text, and cannot be computed without the secret.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["FORMAT", "Recipe", "Ref", "identify", "neutralise", "parse", "split", "to_marker"]

FORMAT = 1
"""Version of the file formats and of the record that ids are made of. Stores read this one and the one before."""

_HEAD = "ultragist0"
_MARKER = re.compile(_HEAD + "([a-z2-7]{26})0", re.IGNORECASE | re.ASCII)
_LOOK_ALIKE = re.compile(_HEAD, re.IGNORECASE | re.ASCII)
_ID = re.compile("[a-z2-7]{26}", re.IGNORECASE | re.ASCII)
_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Ref:
    """A marker found in a text.

    Attributes:
        name: The id, 26 characters of lower-case base32.
        start: First character of the marker in the text.
        stop: Character behind the last one.
    """

    name: str
    start: int
    stop: int

    @property
    def marker(self) -> str:
        """The marker in its plain form."""
        return to_marker(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything but the text that determines a memory.

    Attributes:
        model: Fingerprint of the model with its gist projections.
        tokenizer: Fingerprint of the tokenizer; empty where token ids were given.
        config: `GistConfig.to_dict()`.
        ratios: Ratio plan: one ratio for all gists, or the ratios of the segments in order.
        mode: `independent` or `joint`, with `+raw` where the newest tokens are kept raw.
        verbatim: Name of the policy that keeps spans raw; empty for none.
        dtype: Number format of the stored tensors, for instance `bfloat16`.
    """

    model: str
    tokenizer: str
    config: Mapping[str, Any]
    ratios: tuple[int, ...]
    mode: str = "independent"
    verbatim: str = ""
    dtype: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` is the exact inverse."""
        return {**asdict(self), "config": dict(self.config), "ratios": list(self.ratios)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Make a recipe from what `to_dict` returned."""
        return cls(**{**values, "ratios": tuple(values["ratios"])})


def identify(key: bytes, namespace: str, recipe: Recipe, text: str) -> str:
    """Compute the id of a memory before it is made.

    The record is a sequence of fields, each preceded by its length in bytes (8 bytes, big-endian), so that no two
    different inputs give the same record. The id is the first 128 bits of its HMAC-SHA256 in lower-case base32.

    Args:
        key: Key of the namespace for ids (see `keys.derive`).
        namespace: Name of the tenant.
        recipe: What else determines the memory.
        text: The document.

    Returns:
        26 characters out of a-z and 2-7.

    Example:
        >>> recipe = Recipe(model="m", tokenizer="t", config={"window": 8}, ratios=(4,))
        >>> len(identify(b"key", "acme", recipe, "text"))
        26
    """
    fields = (
        str(FORMAT),
        namespace,
        recipe.model,
        recipe.tokenizer,
        json.dumps(recipe.config, sort_keys=True, separators=(",", ":")),
        ",".join(map(str, recipe.ratios)),
        recipe.mode,
        recipe.verbatim,
        recipe.dtype,
        text,
    )
    digest = hmac.new(key, b"".join(_prefixed(fields)), hashlib.sha256).digest()
    return base64.b32encode(digest[:_ID_BYTES]).decode("ascii").rstrip("=").lower()


def _prefixed(fields: Iterable[str]) -> Iterable[bytes]:
    for field in fields:
        data = field.encode("utf-8", "surrogatepass")
        yield len(data).to_bytes(8, "big")
        yield data


def to_marker(name: str) -> str:
    """Return the word that stands for an id in texts."""
    return f"{_HEAD}{name}0"


def parse(marker: str) -> str | None:
    """Return the id of a marker or bare id in any letter case; None for anything else.

    Example:
        >>> parse("ULTRAGIST0" + "A" * 26 + "0") == parse("a" * 26) == "a" * 26
        True
        >>> parse("something else") is None
        True
    """
    found = _MARKER.fullmatch(marker.strip())
    name = found.group(1) if found else marker.strip()
    return name.lower() if _ID.fullmatch(name) else None


def split(text: str) -> list[str | Ref]:
    """Cut a text at its markers.

    Args:
        text: A prompt, for instance.

    Returns:
        Texts and markers in reading order; empty texts are left out.

    Example:
        >>> [part if isinstance(part, str) else part.name[:3] for part in split("a ultragist0" + "b" * 26 + "0 c")]
        ['a ', 'bbb', ' c']
    """
    parts: list[str | Ref] = []
    end = 0
    for found in _MARKER.finditer(text):
        parts.append(text[end : found.start()])
        parts.append(Ref(found.group(1).lower(), found.start(), found.end()))
        end = found.end()
    parts.append(text[end:])
    return [part for part in parts if part]


def neutralise(text: str) -> str:
    """Make untrusted text unable to carry a marker, and leave it readable.

    Every `ultragist0` becomes `ultragist-0`, also where no whole marker follows: two harmless texts put side by side
    could complete one.

    Args:
        text: A document or a user's words.

    Returns:
        The text without look-alikes; doing it twice changes nothing more.

    Example:
        >>> neutralise("see ultragist0" + "a" * 26 + "0")
        'see ultragist-0aaaaaaaaaaaaaaaaaaaaaaaaaa0'
    """
    return _LOOK_ALIKE.sub(lambda found: f"{found.group()[:-1]}-0", text)
