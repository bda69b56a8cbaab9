"""Sessions that follow the messages of a framework: one for each thread, made again from the messages when need be.

Is        `ThreadSessions`, which holds the latest ones; texts of old turns in, markers of their memories out.
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

__all__ = ["ThreadSession", "ThreadSessions"]

_N_HELD = 4
"""Sessions that are held; of others nothing is left but the memories in their stores."""

_log = logging.getLogger(__name__)


class ThreadSessions:
    """The sessions of many threads, each within the same number of slots. Requests may share it."""

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
        self._slots, self._ratio = slots, ratio
        self._held: OrderedDict[Hashable, ThreadSession] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, engine: UltraGist, store: GistStore, thread: str) -> ThreadSession:
        """Return the session of a thread; an empty one if it is not held.

        Args:
            engine: Compresses what is new, or is to have a higher ratio.
            store: Looked up and filled with memories; texts are not written there.
            thread: Its name. Threads of one name are told apart by what they say, at the price of more work.

        Returns:
            The session.

        Raises:
            ContextOverflowError: If `slots` and a turn exceed the positions of the model.
        """
        key = (id(engine), engine.fingerprint, id(store), thread)  # a session keeps its engine and store alive
        with self._lock:
            session = self._held.pop(key, None) or ThreadSession(engine, store, self._slots, self._ratio)
            self._held[key] = session
            while len(self._held) > _N_HELD:
                self._held.popitem(last=False)
        return session


class ThreadSession(Conversation):
    """A session of plain texts without recent tokens: the framework shows what is recent, and keeps all messages."""

    def __init__(self, engine: UltraGist, store: GistStore, slots: int | None, ratio: int | None) -> None:
        """Begin without turns; `ThreadSessions.get` does."""
        n_positions = engine.max_positions
        ladder = None if ratio is None else _ladder(engine.config, ratio)
        settings = SessionSettings.choose(engine.config, n_positions, slots=slots, recent=0, ladder=ladder)
        settings = replace(settings, segment_tokens=max(1, min(settings.slots // 2, n_positions // 4)))
        settings.check_fit(0, n_positions)
        maker = Maker(engine, make_rendering(engine.tokenizer, "plain", None), settings, store)
        maker._warned = True  # of an archive, which nobody can ask here
        pages = Pages(GistStore.open("memory://"), "")  # of texts, which go when the session goes
        super().__init__(maker, State(archive=Archive(pages=pages), plan=maker.empty))
        self.slots = settings.slots
        self._is_full = False

    def markers_of(self, texts: Sequence[str]) -> list[list[str]]:
        """Bring the session to texts, and return the markers that stand for them; a `marker_scope` may read these.

        Args:
            texts: Old turns, oldest first.

        Returns:
            For each text its markers: several for a long one, none for one that the slots have no room for any more.

        Raises:
            StoreError: If a memory cannot be written.
        """
        digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts]
        seen: Counter[str] = Counter()
        turns = []
        for digest, text in zip(digests, texts, strict=True):
            turns.append((f"{digest}-{seen[digest]}", "", text))
            seen[digest] += 1
        with self._lock:
            self.sync(turns)
            self.markers()
            held = self._state.held
            parts = [[(turn.id, number) for number in range(len(turn.lengths))] for turn in self._state.turns]
        rows = [[str(held[part].marker) for part in several if part in held] for several in parts]
        if not self._is_full and not all(rows):
            self._is_full = True
            _log.warning(
                "a conversation has more old turns than %d slots can hold: the oldest are left out", self.slots
            )
        for row in rows:
            for marker in row:
                hand_out(parse_marker(marker) or "")
        return rows


def _ladder(config: GistConfig, ratio: int) -> list[int]:
    """Return the ratios that a turn goes through: those of the config above the first, or doubled ones."""
    higher = sorted({other for other in config.ratios if other > ratio})
    return [ratio, *higher] if higher else [ratio << step for step in range(4)]
