"""A LangChain agent whose old turns become memories, while the checkpointer keeps every message as it was.

    pip install '.[langchain]'
    python examples/03_langchain_agent.py

The first two messages bring long notes along. The last two ask about them when only their memories are in the prompt.
"""

from pathlib import Path

try:
    from langchain.agents import create_agent
    from langgraph.checkpoint.memory import InMemorySaver

    from langchain_ultragist import ChatUltraGist, UltraGistHistoryMiddleware
    from ultragist_rag import GistStore
    from ultragist_rag.rag import read_passages
except ImportError as error:
    raise SystemExit(f"{error.name} is missing. Run: pip install 'ultragist-rag[langchain]'") from error

passages = read_passages(Path(__file__).parent / "corpus")
notes = {(passage.title, passage.section): passage.text for passage in passages}
conversation = [
    f"{notes['Mongolia', 'Government']}\n\nWhat is the capital of Mongolia?",
    f"{notes['Norway', 'Economy']}\n\nWhat is the inflation rate of Norway?",
    "When did Mongolia become independent?",
    "What does Norway export most?",
]

store = GistStore.open("memory://")  # gone when the program ends; a folder keeps memories
agent = create_agent(
    ChatUltraGist(store=store, max_tokens=24),
    tools=[],  # the bundled model calls none; a model whose chat template shows tools does
    middleware=[UltraGistHistoryMiddleware(keep=("messages", 1), ratio=2)],  # all turns but the running one
    checkpointer=InMemorySaver(),
)
thread = {"configurable": {"thread_id": "a journey"}}

for message in conversation:
    state = agent.invoke({"messages": [{"role": "user", "content": message}]}, thread)
    answer = state["messages"][-1]
    slots = answer.usage_metadata["input_token_details"]["cache_read"]
    print(f"\n{message.splitlines()[-1]}\n  {answer.text.strip()}")
    print(f"  {answer.usage_metadata['input_tokens']} tokens read, {slots} of them slots of old turns")

print("\nWhat the checkpointer keeps, and in how many slots the model reads it once a turn is old:")
kept = agent.get_state(thread).values["messages"]
print(f"  {len(kept)} messages, the first as it was: {kept[0].text == conversation[0]}")
for marker in store:
    source, memory = store.source(marker).text, store.get(marker)
    print(f"  {memory.n_source_tokens} tokens in {memory.slots} slots: {' '.join(source.split())[:60]} ...")
