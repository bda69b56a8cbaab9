"""Ask a folder of texts with the core alone: compress every passage once, answer from the memories many times.

    pip install '.[retrieval]'
    python examples/01_ask_documents.py                              # the texts of examples/corpus
    python examples/01_ask_documents.py my-texts "What is it about?"

Run it twice: the memories are kept in ./gists, so the second run compresses nothing.
"""

import sys
from pathlib import Path

from ultragist_rag import GistStore, UltraGist, UltraGistError
from ultragist_rag.rag import HashingEmbeddings, PassageIndex, read_passages

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "corpus"
questions = sys.argv[2:] or [
    "What is the capital of Mongolia?",
    "What is the currency of Norway?",
    "When did Bahrain become independent?",
]

try:
    passages = read_passages(folder)  # .txt and .md files, cut at headings and line ends
    index = PassageIndex.build(passages, HashingEmbeddings())  # finds passages; needs no model and no network
except UltraGistError as error:  # no texts in the folder, for instance, or FAISS is not installed
    raise SystemExit(f"error: {error}") from error

gist = UltraGist.from_pretrained("bundled")  # or a folder, or the id of a model on the hub
store = GistStore.open("gists")  # a folder of sealed files; ids are signed with your secret

# One marker per passage. What the store holds already is found again, all the rest is compressed in batches.
markers = store.get_or_compress(gist, [passage.text for passage in passages], ratio=4)
marker_of = dict(zip(passages, markers, strict=True))
counts = store.stats()
print(f"{len(passages)} passages: {counts.n_misses} compressed, {counts.n_hits} reused")

for question in questions:
    found = [passage for passage, _ in index.search(question, k=3)]
    memories = store.get_many([marker_of[passage] for passage in found], gist)
    # A prompt is a list of texts and memories, in any order. This is the form that the bundled model was trained on.
    context = [piece for memory in memories for piece in (memory, "\n\n")]
    answer = gist.generate([*context, f"Question: {question}\nAnswer:"], max_new_tokens=24)
    tokens, slots = (sum(getattr(one, name) for one in memories) for name in ("n_source_tokens", "slots"))
    print(f"\n{question}\n  {answer.strip()}")
    print(f"  from {', '.join(sorted({passage.source for passage in found}))}: {tokens} tokens in {slots} memory slots")
