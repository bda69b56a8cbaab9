"""What was said: one turn of a session, as it lies in the archive.

Is        `Said`, a frozen record, checked where it is made.
Flow      errors -> [turns] -> rendering, pages, session.
Change    what is kept of a turn.
Not here  tokens and slots of a turn -> state.py.
Holds     `Said.from_dict(said.to_dict()) == said`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ultragist_rag.errors import InputError

__all__ = ["Said"]

_ROLE = re.compile(r"(?:[A-Za-z][A-Za-z0-9_-]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one speaker said.

    Attributes:
        role: Such as system, user, assistant or tool. Empty where the text itself says who speaks, without a template.
        content: The text.
        tool_calls: Of an assistant: `{"name", "arguments", "id"}` each.
        tool_call_id: Of a tool: which call it answers.
        name: Of the speaker.

    Raises:
        InputError: If the role is no plain word, the content no text, or a tool call not of JSON values, or if there is
            nothing at all.
    """

    role: str
    content: str
    tool_calls: Sequence[Mapping[str, Any]] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        """Check it; what is wrong in a tool call for the template is said when it is rendered."""
        if not isinstance(self.role, str) or not _ROLE.fullmatch(self.role):
            raise InputError(f"the role of a turn is {self.role!r}, but must be a plain word such as user.")
        if not isinstance(self.content, str):
            raise InputError(f"the content of a turn is {self.content!r:.200}, but must be a text.")
        if not self.role and not self.content:
            raise InputError("a turn has neither role nor content: leave it out.")
        try:
            plain = json.loads(json.dumps(list(self.tool_calls), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise InputError(f"a tool call holds what JSON cannot carry: {error}.") from error
        if not all(isinstance(call, dict) for call in plain):
            raise InputError(f"tool_calls are {plain!r:.200}, but must be a list of mappings with name and arguments.")
        object.__setattr__(self, "tool_calls", plain)

    @property
    def digest(self) -> str:
        """Tells it from everything else that can be said."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:32]

    def to_message(self) -> dict[str, Any]:
        """Return it as chat templates take it."""
        return {"role": self.role, **self.to_dict(), "content": [self.content]}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` is the exact inverse."""
        more = {"tool_calls": self.tool_calls, "tool_call_id": self.tool_call_id, "name": self.name}
        return {"role": self.role, "content": self.content, **{key: value for key, value in more.items() if value}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Said:
        """Make it from what `to_dict` returned; other entries do not matter."""
        names = ("role", "content", "tool_calls", "tool_call_id", "name")
        return cls(**{name: values[name] for name in names if name in values})
