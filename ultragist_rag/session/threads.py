"""Sessions that follow the messages of a framework: one for each thread, made again from the messages when need be.

Is        `ThreadSessions`: texts of old turns in, markers of their memories out, within a number of slots.
Flow      conversation -> [threads] -> history middleware, memory block.
Change    how many sessions are held, what they are told apart by.
Not here  which turns are old and how they are written -> integrations; their ratios -> layout/session_plan.py.
Holds     equal texts give equal markers, whether their session was held or not; stores share no session.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

from ultragist_rag.config import GistConfig
from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError
from ultragist_rag.session.conversation import Conversation
from ultragist_rag.session.making import Maker
from ultragist_rag.session.pages import Archive, Pages
from ultragist_rag.session.rendering import make_rendering
from ultragist_rag.session.settings import SessionSettings
from ultragist_rag.session.state import State
from ultragist_rag.store import GistStore, parse_marker
from ultragist_rag.store.scope import hand_out

__all__ = ["ThreadSessions"]

_N_HELD = 4
"""Sessions that are held; of others nothing is left but the memories in their stores."""

_log = logging.getLogger(__name__)


class ThreadSessions:
    """Shows the old turns of many threads, each within the same number of slots. Requests may share it."""

    def __init__(self, *, slots: int | None = None, ratio: int | None = None) -> None:
        """Hold nothing yet.

        Args:
            slots: Memory slots that the old turns of a thread may take; None for 2048, or half of the model's positions
                if that is less.
            ratio: Raw tokens per gist token of the newest of them; None for the ratio of the model's config.

        Raises:
            InputError: If a number is out of range.
        """
        for name, value, least in (("slots", slots, 1), ("ratio", ratio, 2)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InputError(f"{name} is {value!r}, but must be a whole number of at least {least}.")
        self.slots = slots
        self.ratio = ratio
        self._held: OrderedDict[Hashable, _Session] = OrderedDict()
        self._lock = threading.Lock()
        self._warned = False

    def markers(self, engine: UltraGist, store: GistStore, thread: str | None, texts: Sequence[str]) -> list[list[str]]:
        """Return the markers that stand for texts; a `marker_scope` may read them.

        Args:
            engine: Compresses what is new, or is to have a higher ratio.
            store: Looked up and filled.
            thread: Name of the thread; None where it has none, and is known by its first text.
            texts: Old turns, oldest first.

        Returns:
            For each text its markers: several for a long one, none for one that the slots have no room for any more.

        Raises:
            ContextOverflowError: If `slots` and a turn exceed the positions of the model.
            StoreError: If a memory cannot be written.
        """
        if not texts:
            return []
        session = self._session(engine, store, (thread, "" if thread is not None else texts[0]))
        seen: Counter[str] = Counter()
        turns = []
        for text in texts:
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
            turns.append((f"{digest}-{seen[digest]}", "", text))
            seen[digest] += 1
        rows = session.shown(turns)
        if not self._warned and not rows[0]:
            self._warned = True
            _log.warning("a conversation has more old turns than its slots can hold: the oldest are not shown any more")
        for marker in (marker for row in rows for marker in row):
            hand_out(parse_marker(marker) or "")
        return rows

    def _session(self, engine: UltraGist, store: GistStore, thread: Hashable) -> _Session:
        key = (id(engine), engine.fingerprint, id(store), thread)  # a session keeps its engine and store alive
        with self._lock:
            session = self._held.pop(key, None) or _Session(engine, store, self.slots, self.ratio)
            self._held[key] = session
            while len(self._held) > _N_HELD:
                self._held.popitem(last=False)
        return session


class _Session(Conversation):
    """A session of plain texts without recent tokens: the framework shows what is recent, and keeps all messages."""

    def __init__(self, engine: UltraGist, store: GistStore, slots: int | None, ratio: int | None) -> None:
        n_positions = engine.max_positions
        chosen: dict[str, Any] = {
            "slots": slots,
            "recent": 0,
            "ladder": None if ratio is None else _ladder(engine.config, ratio),
        }
        settings = SessionSettings.choose(engine.config, n_positions, **chosen)
        settings = replace(settings, segment_tokens=max(1, min(settings.slots // 2, n_positions // 4)))
        settings.check_fit(0, n_positions)
        maker = Maker(engine, make_rendering(engine.tokenizer, "plain", None), settings, store)
        maker._warned = True  # an archive that nobody can ask is worth no warning
        pages = Pages(GistStore.open("memory://").records, "")  # texts go with the session: the user's store gets none
        super().__init__(maker, State(archive=Archive(pages=pages), plan=maker.empty))

    def shown(self, turns: Sequence[tuple[str, str, str]]) -> list[list[str]]:
        """Bring the session to turns, and return the markers of each."""
        with self._lock:
            self.sync(turns)
            self.markers()
            held = self._state.held
            parts = [[(turn.id, number) for number in range(len(turn.lengths))] for turn in self._state.turns]
            return [[str(held[part].marker) for part in several if part in held] for several in parts]


def _ladder(config: GistConfig, ratio: int) -> list[int]:
    """Return the ratios that a turn goes through: those of the config above the first, or doubled ones."""
    higher = sorted({other for other in config.choices if other > ratio})
    return [ratio, *higher] if higher else [ratio << step for step in range(4)]
