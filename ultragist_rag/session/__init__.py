"""Chat memory that stays within a number of slots, however long the conversation gets."""

from ultragist_rag.session.asking import SessionStream
from ultragist_rag.session.session import GistSession
from ultragist_rag.session.settings import SessionSettings
from ultragist_rag.session.state import SessionStats, SessionTurn
from ultragist_rag.session.threads import ThreadSession, ThreadSessions

__all__ = [
    "GistSession",
    "SessionSettings",
    "SessionStats",
    "SessionStream",
    "SessionTurn",
    "ThreadSession",
    "ThreadSessions",
]
