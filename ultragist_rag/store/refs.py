"""Markers: how a memory travels through frameworks that carry only text.

Is        ids (HMAC over everything that determines a memory) and the words that carry them, `ultragist0...0`.
Flow      config, sizing -> [refs] -> store. Imports no torch.
Paper     none: the marker alphabet was chosen by trying what text pipelines leave alone.
Change    the form of a marker; what an id depends on (raise ID_FORMAT: every id changes with it).
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

from ultragist_rag.sizing import KINDS, Kind

__all__ = [
    "FORMAT",
    "ID_FORMAT",
    "Recipe",
    "Ref",
    "find_broken",
    "identify",
    "neutralise",
    "parse",
    "repair",
    "split",
    "to_marker",
]

FORMAT = 2
"""Version of the file formats. Stores read this one and the one before."""

ID_FORMAT = 1
"""Version of the record that ids are made of. Ids outlive file formats: what was stored before is still found."""

_HEAD = "ultragist0"
_MARKER = re.compile(_HEAD + "([a-z2-7]{26})0", re.IGNORECASE | re.ASCII)
_LOOK_ALIKE = re.compile(_HEAD, re.IGNORECASE | re.ASCII)
_ID = re.compile("[a-z2-7]{26}", re.IGNORECASE | re.ASCII)
_ID_BYTES = 16
_N_TAIL = 27

_BREAK = r"(?:\s|\\+[nrt]){1,80}"
_WRAPPED_ID = rf"(?:(?:{_BREAK})?[a-z2-7]){{26}}(?:{_BREAK})?0"
_WRAPPED_HEAD = "|".join(f"{_HEAD[:cut]}{_BREAK}{_HEAD[cut:]}" for cut in range(1, len(_HEAD)))
# A break in the head is mended only before a whole id: so `neutralise` can see every part that a join could complete.
_WRAPPED = re.compile(f"{_HEAD}{_WRAPPED_ID}|(?:{_WRAPPED_HEAD})[a-z2-7]{{26}}0", re.IGNORECASE | re.ASCII)
_BREAKS = re.compile(_BREAK)

_HEAD_END = "(?:" + "|".join(_HEAD[cut:] for cut in range(1, len(_HEAD))) + ")"
_TAIL = re.compile(
    rf"(?<![a-z0-9])(?<!ultragist-)(?:{_HEAD_END}[a-z2-7]{{26}}|(?=[a-z]*[2-7])[a-z2-7]{{26}})0",
    re.IGNORECASE | re.ASCII,
)
_WRAPPED_TAIL = re.compile(rf"\s*{_HEAD_END}{_WRAPPED_ID}", re.IGNORECASE | re.ASCII)
_CUT_HEAD = re.compile(f"{_HEAD}[a-z2-7]{{0,25}}", re.IGNORECASE | re.ASCII)


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
        dtype: Number format of the stored tensors, for instance `bfloat16`; `int8` or `int4` if quantised.
    """

    model: str
    tokenizer: str
    config: Mapping[str, Any]
    ratios: tuple[int, ...]
    mode: str = "independent"
    verbatim: str = ""
    dtype: str = "float32"

    @property
    def quantise(self) -> Kind | None:
        """How the memory is quantised in its file; None if it is not."""
        return next((kind for kind in KINDS if kind == self.dtype), None)

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
        str(ID_FORMAT),
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


def parse(marker: object) -> str | None:
    """Return the id of a marker or bare id in any letter case; None for anything else.

    Example:
        >>> parse("ULTRAGIST0" + "A" * 26 + "0") == parse("a" * 26) == "a" * 26
        True
        >>> parse("something else") is None
        True
    """
    if not isinstance(marker, str):
        return None
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


def repair(text: str) -> str:
    r"""Join markers that line wrapping broke, with white space or with the escaped line end of a `repr`.

    Args:
        text: A prompt.

    Returns:
        The text with these markers whole; everything else is as it was.

    Example:
        >>> repair("see ultragist0" + "a" * 13 + "\n  " + "a" * 13 + "0, p. 3")
        'see ultragist0aaaaaaaaaaaaaaaaaaaaaaaaaa0, p. 3'
    """
    return _WRAPPED.sub(lambda found: _BREAKS.sub("", found.group()), text)


def find_broken(text: str) -> str | None:
    """Find a part of a marker: its head without the rest, or its id without the head.

    An id is told from words by a digit in it, or by what is left of the head in front of it.

    Args:
        text: A prompt, after `repair`.

    Returns:
        The first part found; None if all markers are whole.

    Example:
        >>> find_broken("see ultragist0abc"), find_broken("ultragist0" + "a" * 26 + "0")
        ('ultragist0abc', None)
    """
    rest = _MARKER.sub(" ", text)
    found = _CUT_HEAD.search(rest) or next(filter(_is_tail, _TAIL.finditer(rest)), None)
    return found.group() if found else None


def _is_tail(found: re.Match[str]) -> bool:
    """Say whether it is an id without its head; a word of mixed case is a name or key of something else."""
    part = found.group()
    return len(part) > _N_TAIL or part in (part.lower(), part.upper())


def neutralise(text: str) -> str:
    """Make untrusted text unable to carry a marker, whole or in part, and leave it readable.

    Every `ultragist0` becomes `ultragist-0`, also where no whole marker follows: two harmless texts put side by side
    could complete one. For the same reason an id without its head gets a hyphen in front of its last `0`.

    Args:
        text: A document or a user's words.

    Returns:
        The text without look-alikes; doing it twice changes nothing more.

    Example:
        >>> neutralise("see ultragist0" + "a" * 26 + "0")
        'see ultragist-0aaaaaaaaaaaaaaaaaaaaaaaaaa0'
    """
    text = _WRAPPED.sub(lambda found: _hyphened(found.group(), found.group().index("0")), text)
    text = _LOOK_ALIKE.sub(lambda found: _hyphened(found.group(), -1), text)
    text = _TAIL.sub(lambda found: _hyphened(found.group(), -1) if _is_tail(found) else found.group(), text)
    start = _WRAPPED_TAIL.match(text)
    return _hyphened(start.group(), -1) + text[start.end() :] if start else text


def _hyphened(part: str, place: int) -> str:
    return f"{part[:place]}-{part[place:]}"
