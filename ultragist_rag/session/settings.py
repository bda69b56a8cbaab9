"""Settings of a session, checked once.

Is        `SessionSettings`, frozen: what is chosen at the beginning and saved with the session.
Flow      errors -> [settings] -> saving, session.
Change    what can be chosen, what is chosen where nothing is said.
Not here  how a budget is divided -> layout/session_plan.py.
Holds     a session with these settings fits into the positions of the model, question and answer included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import ContextOverflowError, InputError
from ultragist_rag.layout.session_plan import SessionPlan
from ultragist_rag.memory.verbatim import CUSTOM, policy_name

__all__ = ["SessionSettings"]

_SLOTS, _RECENT, _SEGMENT = 2048, 512, 256
"""What is chosen at most where nothing is said."""

_ROOM = 256
"""Positions that are left for the tokens of a question and its answer, or an eighth of them if that is less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """What is chosen when a session begins.

    Attributes:
        slots: Memory slots of all compressed turns together.
        recent: Tokens of the newest turns, at least, that stay as they are.
        ladder: Ratios that a turn goes through as it gets older.
        segment_tokens: Tokens of a segment at most; longer turns are several segments.
        system: Text at the head of every prompt.
        verbatim: Policy for tokens that are kept as they are inside compressed turns.
    """

    slots: int
    recent: int
    ladder: tuple[int, ...]
    segment_tokens: int
    system: str | None = None
    verbatim: str | None = None

    @classmethod
    def choose(
        cls,
        config: GistConfig,
        n_positions: int,
        *,
        slots: int | None = None,
        recent: int | None = None,
        ladder: Sequence[int] | None = None,
        segment_tokens: int | None = None,
        **others: Any,
    ) -> SessionSettings:
        """Fill in what was not said.

        Args:
            config: Of the model.
            n_positions: That the model can use.
            slots: None for 2048, or half of the positions if that is less.
            recent: None for 512, or an eighth of the positions if that is less.
            ladder: None for the ratios of the config from its `ratio` on, or four that double from there.
            segment_tokens: None for 256; or the window, half of `slots`, or an eighth of the positions if that is less.
            others: Other settings.

        Returns:
            The settings.

        Raises:
            InputError: If a number is out of range, or the verbatim policy has no name that is known.
        """
        for name, number in {"slots": slots, "recent": recent, "segment_tokens": segment_tokens}.items():
            if isinstance(number, bool) or not isinstance(number, int | None):
                raise InputError(f"{name} is {number!r}, but must be a whole number.")
        if not isinstance(ladder, Sequence | None):
            raise InputError(f"ladder is {ladder!r}, but must be rising ratios, such as (4, 8, 16, 32).")
        if policy_name(others.get("verbatim")) == CUSTOM:
            raise InputError(
                "a session is saved with the name of its verbatim policy: give it one with `register_policy`, and pass "
                "the name."
            )
        slots = min(_SLOTS, n_positions // 2) if slots is None else slots
        ratios = sorted({ratio for ratio in config.ratios if ratio >= config.ratio and ratio > 1})
        if len(ratios) < 2:
            ratios = [max(config.ratio, 2) << step for step in range(4)]
        made = cls(
            slots=slots,
            recent=min(_RECENT, n_positions // 8) if recent is None else recent,
            ladder=tuple(ratios if ladder is None else ladder),
            segment_tokens=segment_tokens or max(1, min(_SEGMENT, config.window, slots // 2, n_positions // 8)),
            **others,
        )
        if made.segment_tokens < 1 or segment_tokens == 0:
            raise InputError(f"segment_tokens is {segment_tokens!r}, but must be a whole number of at least 1.")
        made.plan(config)
        return made

    def plan(self, config: GistConfig) -> SessionPlan:
        """Return the plan of a session without turns."""
        return SessionPlan(self.slots, self.ladder, config.n_stride, self.recent)

    def check_fit(self, n_head: int, n_positions: int) -> None:
        """Refuse a session that a model could not read.

        Args:
            n_head: Tokens in front of the first turn.
            n_positions: That the model can use.

        Raises:
            ContextOverflowError: If it would need more positions than there are.
        """
        room = min(_ROOM, n_positions // 8)
        needed = n_head + self.slots + self.recent + self.segment_tokens + room
        if needed > n_positions:
            raise ContextOverflowError(
                f"the session may need {needed} positions ({n_head} for the system text, {self.slots} slots, "
                f"{self.recent} recent tokens, {self.segment_tokens} of a segment, {room} for question and answer), "
                f"but the model has {n_positions}. Use fewer slots or recent tokens."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` is the exact inverse."""
        return {**asdict(self), "ladder": list(self.ladder)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SessionSettings:
        """Make them from what `to_dict` returned."""
        return cls(**{**values, "ladder": tuple(values["ladder"])})
