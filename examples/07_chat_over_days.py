"""A chat that goes on for days: each run of this program is another process, and the second knows what the first read.

    pip install '.'
    python examples/07_chat_over_days.py
    python examples/07_chat_over_days.py

The first run tells the session two notes. Every later one asks about them, then makes a fork that forgets one of them.
"""

from pathlib import Path

from ultragist_rag import GistStore, UltraGist
from ultragist_rag.rag import read_passages
from ultragist_rag.session import GistSession

store = GistStore.open("chats")  # a folder; any process that opens it can go on with the sessions in it
gist = UltraGist.from_pretrained("bundled")


def ask(session, question):
    """Print question and answer; both are saved before the program goes on."""
    print(f"{question}\n  {session.ask(question, max_new_tokens=24)}")
    session.save()


def show(session):
    """Print what the session holds."""
    stats = session.stats()
    print(f"  {stats.n_turns} turns in {stats.n_slots} memory slots and {stats.n_recent_tokens} tokens")


if "a journey" not in GistSession.names(store):
    print("The first day")
    passages = read_passages(Path(__file__).parent / "corpus")
    notes = {(passage.title, passage.section): passage.text for passage in passages}
    session = gist.session(slots=512, recent=64, ladder=(2, 4, 8), store=store, name="a journey")
    for title, section in (("Mongolia", "Government"), ("Norway", "Economy")):
        session.append("system", notes[title, section])
    ask(session, "What is the capital of Mongolia?")
    show(session)
    print("Run this program again.")
else:
    print("Another day")
    session = GistSession.load(gist, store, "a journey")
    show(session)
    ask(session, "When did Mongolia become independent?")
    ask(session, "What does Norway export most?")
    about_norway = session.turns()[1].id
    print("A fork that never heard of Norway")
    GistSession.delete(store, "without Norway")  # of an earlier run, if there was one
    fork = session.fork("without Norway")
    fork.forget(about_norway)
    ask(fork, "What does Norway export most?")
    show(fork)
    print("Sessions:", ", ".join(sorted(GistSession.names(store))))
