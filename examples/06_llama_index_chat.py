"""A LlamaIndex chat engine that remembers: turns that no longer fit the chat history become memories of the LLM.

    pip install '.[llama-index]'
    python examples/06_llama_index_chat.py

The first two messages bring long notes along. The last two ask about them when only their memories are in the prompt.
"""

from pathlib import Path

try:
    from llama_index.core.chat_engine import SimpleChatEngine
    from llama_index.core.memory import Memory
    from llama_index.core.prompts import RichPromptTemplate

    from llama_index_ultragist import GistMemoryBlock, UltraGistLLM, slot_tokenizer
    from ultragist_rag import GistStore
    from ultragist_rag.rag import read_passages
except ImportError as error:
    raise SystemExit(f"{error.name} is missing. Run: pip install 'ultragist-rag[llama-index]'") from error

passages = read_passages(Path(__file__).parent / "corpus")
notes = {(passage.title, passage.section): passage.text for passage in passages}
conversation = [
    f"{notes['Mongolia', 'Government']}\n\nWhat is the capital of Mongolia?",
    f"{notes['Norway', 'Economy']}\n\nWhat is the inflation rate of Norway?",
    "When did Mongolia become independent?",
    "What does Norway export most?",
]

store = GistStore.open("memory://")  # gone when the program ends; a folder keeps memories
llm = UltraGistLLM(store=store, max_tokens=24)
count = slot_tokenizer(llm)  # a marker takes as much room as the memory that it stands for
block = GistMemoryBlock(store=store, ratio=2, tokenizer_fn=count)
memory = Memory.from_defaults(
    session_id="a journey",
    token_limit=600,  # of the history and the memories of old turns together,
    chat_history_token_ratio=0.2,  # the history having 120 of them
    memory_blocks=[block],
    tokenizer_fn=count,
    # Markers with blank lines between them: what the small bundled model is used to. Others can have the default.
    memory_blocks_template=RichPromptTemplate(
        "{% for name, parts in memory_blocks %}{% for part in parts %}{{ part.text }}\n\n{% endfor %}{% endfor %}"
    ),
)
chat = SimpleChatEngine.from_defaults(llm=llm, memory=memory)

for message in conversation:
    response = chat.chat(message)
    print(f"\n{message.splitlines()[-1]}\n  {response.response.strip()}")
    for marker in block.turns.get("a journey", []):
        old, n_slots = store.source(marker).text, store.get(marker).slots
        print(f"  remembered in {n_slots} slots: {' '.join(old.split())[:60]} ...")
