"""A LangGraph graph whose user comes back days later in a new thread, and is remembered.

    pip install '.[langchain]'
    python examples/09_langgraph_sessions.py

The checkpointer keeps the messages of each thread, as always. What the user said in any thread is kept in one session
of this user, in a store: old turns as memories, within a fixed number of slots.
"""

from pathlib import Path

try:
    from langchain_core.messages import AIMessage
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.graph import START, MessagesState, StateGraph

    from ultragist_rag import GistStore, UltraGist
    from ultragist_rag.rag import read_passages
    from ultragist_rag.session import GistSession
except ImportError as error:
    raise SystemExit(f"{error.name} is missing. Run: pip install 'ultragist-rag[langchain]'") from error

passages = read_passages(Path(__file__).parent / "corpus")
notes = {(passage.title, passage.section): passage.text for passage in passages}
store = GistStore.open("chats")  # a folder; any process that opens it can go on with the sessions in it
gist = UltraGist.from_pretrained("bundled")


def answer(state, config):
    """Ask the session of the user, which is loaded anew for each message."""
    user = config["configurable"]["user"]
    is_known = user in GistSession.names(store)
    session = GistSession.load(gist, store, user) if is_known else gist.session(512, 64, store=store, name=user)
    said = session.ask(state["messages"][-1].text, max_new_tokens=24)
    session.save()
    return {"messages": [AIMessage(said)]}


graph = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile(InMemorySaver())


def say(thread, text):
    """Send a message in a thread, and count the messages that the checkpointer keeps of it."""
    config = {"configurable": {"thread_id": thread, "user": "ada"}}
    state = graph.invoke({"messages": [{"role": "user", "content": text}]}, config)
    print(f"{text.splitlines()[-1]}\n  {state['messages'][-1].text}")
    return len(state["messages"])


print("On Monday")
say("monday", f"{notes['Mongolia', 'Government']}\n\nWhat is the capital of Mongolia?")
n_messages = say("monday", f"{notes['Norway', 'Economy']}\n\nWhat is the inflation rate of Norway?")
print(f"  {n_messages} messages in this thread")

print("On Thursday, in a new thread")
say("thursday", "When did Mongolia become independent?")
n_messages = say("thursday", "What does Norway export most?")
n_turns = len(GistSession.load(gist, store, "ada").turns())
print(f"  {n_messages} messages in this thread, {n_turns} turns in the session of the user")
