"""The main job: index a folder of texts once, answer questions from their memories many times.

Is        a folder's passages in FAISS, their memories in a directory store, and a LangChain chain over both.
Flow      rag, store, engine -> langchain_ultragist -> [pipeline] -> cli. The only module that builds a chain.
Change    the prompt, the shape of the chain, what is measured.
Not here  cutting and embedding -> rag/; markers and answers in LangChain -> langchain_ultragist; printing -> cli.py.
Holds     a passage is compressed once: a second run finds it. Chains that are compared differ in the compressor alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from transformers.utils import logging

from langchain_ultragist import UltraGistCompressor, UltraGistLLM
from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError, MemoryMismatchError
from ultragist_rag.rag import PassageIndex, load_embeddings, read_passages
from ultragist_rag.store import GistStore, StoreProgress, neutralise

__all__ = [
    "Answer",
    "Collection",
    "IndexReport",
    "IndexSettings",
    "check_ratio",
    "index_folder",
    "load_engine",
    "open_collection",
]

PROMPT = "{context}\n\nQuestion: {question}\nAnswer:"
"""What the bundled model was trained to read; the documents take the place of `context`."""


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """How to index.

    Attributes:
        model: What the engine is loaded from.
        ratio: Raw tokens per gist token; None takes the one of the model's config.
        embeddings: Name, as `load_embeddings` takes it.
    """

    model: str = "bundled"
    ratio: int | None = None
    embeddings: str = "hashing"


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What indexing did.

    Attributes:
        folder: The indexed folder.
        into: Where index and memories are.
        model: Name of the model.
        ratio: Raw tokens per gist token.
        files: Number of files read.
        passages: Number of passages, each one memory.
        compressed: Memories made now.
        reused: Memories that were stored already.
        document_tokens: Tokens of all passages.
        memory_slots: Slots of all memories.
        seconds: Duration of compressing, loading the model excluded.
    """

    folder: str
    into: str
    model: str
    ratio: int
    files: int
    passages: int
    compressed: int
    reused: int
    document_tokens: int
    memory_slots: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and what it took.

    Attributes:
        question: As asked.
        answer: From the memories.
        sources: Files of the passages read, nearest first, each once.
        document_tokens: Tokens of the passages as text.
        memory_slots: Slots of their memories.
        first_token_seconds: From the question to the first piece of the answer, through the chain; median of the runs.
        full_text_answer: From the same prompt with the passages as text; None if not compared.
        full_text_first_token_seconds: The same duration there.
    """

    question: str
    answer: str
    sources: tuple[str, ...]
    document_tokens: int
    memory_slots: int
    first_token_seconds: float
    full_text_answer: str | None = None
    full_text_first_token_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Collection:
    """An indexed folder, its memories and the model they are for.

    Attributes:
        index: Finds passages.
        store: Holds their memories.
        engine: Made the memories and answers from them.
        ratio: Raw tokens per gist token.
    """

    index: PassageIndex
    store: GistStore
    engine: UltraGist
    ratio: int

    def chain(
        self, *, k: int = 4, max_tokens: int = 32, source_bias: float | None = None, compressed: bool = True
    ) -> Runnable[str, str]:
        """Build the LangChain chain: question in, answer out.

        Args:
            k: Passages per question.
            max_tokens: Longest answer.
            source_bias: How strongly answers are held to the words of the passages; None for the model's own.
            compressed: Put memories into the prompt; otherwise the passages as text, everything else being equal.

        Returns:
            The chain.
        """
        documents: Runnable[str, Sequence[Document]] = RunnableLambda(lambda question: self.retrieve(question, k))
        if compressed:
            compressor = UltraGistCompressor(engine=self.engine, store=self.store, ratio=self.ratio)
            documents = documents | compressor.as_runnable()
        llm = UltraGistLLM(engine=self.engine, store=self.store, max_new_tokens=max_tokens, source_bias=source_bias)
        fill = {"context": documents | RunnableLambda(_join), "question": RunnableLambda(neutralise)}
        return fill | PromptTemplate.from_template(PROMPT) | llm

    def retrieve(self, question: str, k: int) -> list[Document]:
        """Return the passages nearest to a question as LangChain documents, nearest first."""
        return [
            Document(
                passage.text, metadata={"source": passage.source, "title": passage.title, "section": passage.section}
            )
            for passage, _ in self.index.search(question, k)
        ]

    def ask(
        self,
        questions: Sequence[str],
        *,
        k: int = 4,
        max_tokens: int = 32,
        source_bias: float | None = None,
        compare: bool = True,
        runs: int = 3,
    ) -> list[Answer]:
        """Answer questions through the chain, and measure.

        The first question is asked once before anything is measured. Then each is asked `runs` times with memories and,
        in turn with these, as often with full text.

        Args:
            questions: At least one.
            k: Passages per question.
            max_tokens: Longest answer.
            source_bias: As for `chain`.
            compare: Ask the full-text chain too.
            runs: How often each is asked; durations are medians.

        Returns:
            One answer per question, in order.

        Raises:
            InputError: If there is no question.
        """
        if not questions:
            raise InputError("there is no question. Ask something.")
        kinds = (True, False) if compare else (True,)
        chains = [self.chain(k=k, max_tokens=max_tokens, source_bias=source_bias, compressed=kind) for kind in kinds]
        for chain in chains:
            _first_piece(chain, questions[0])
        return [self._answer(chains, question, k, runs) for question in questions]

    def _answer(self, chains: list[Runnable[str, str]], question: str, k: int, runs: int) -> Answer:
        answers = [""] * len(chains)
        durations: list[list[float]] = [[] for _ in chains]
        for _ in range(runs):
            for place, chain in enumerate(chains):
                answers[place], seconds = _first_piece(chain, question)
                durations[place].append(seconds)
        documents = self.retrieve(question, k)
        tokens, slots = self.count([document.page_content for document in documents])
        medians = [statistics.median(seconds) for seconds in durations]
        answer = Answer(
            question=question,
            answer=answers[0].strip(),
            sources=tuple(dict.fromkeys(document.metadata["source"] for document in documents)),
            document_tokens=tokens,
            memory_slots=slots,
            first_token_seconds=medians[0],
        )
        if len(chains) == 1:
            return answer
        return replace(answer, full_text_answer=answers[1].strip(), full_text_first_token_seconds=medians[1])

    def count(self, texts: Sequence[str]) -> tuple[int, int]:
        """Count the tokens of stored passages and the slots of their memories."""
        tokens = slots = 0
        for text in texts:
            if (marker := self.store.find(neutralise(text), self.engine, self.ratio)) is not None:
                memory = self.store.get(marker)
                tokens, slots = tokens + memory.n_source_tokens, slots + memory.slots
        return tokens, slots


def index_folder(
    folder: Path, into: Path, settings: IndexSettings, progress: Callable[[StoreProgress], object] = lambda report: None
) -> tuple[Collection, IndexReport]:
    """Embed and compress the passages of a folder; memories that are stored already are reused.

    Args:
        folder: With `.txt` and `.md` files.
        into: Where index and memories go.
        settings: Model, ratio, embeddings.
        progress: Called after the look-up and after each batch.

    Returns:
        The collection, and what was done.
    """
    passages = read_passages(folder)
    embeddings = load_embeddings(settings.embeddings)
    engine = load_engine(settings.model)
    ratio = check_ratio(engine, settings.ratio)
    about = {"model": settings.model, "fingerprint": engine.fingerprint, "ratio": ratio, "folder": str(folder)}
    index = PassageIndex.build(passages, embeddings, about)
    store = GistStore.open(into / "gists")
    reports: list[StoreProgress] = []

    def note(report: StoreProgress) -> None:
        reports.append(report)
        progress(report)

    started = time.perf_counter()
    texts = [neutralise(passage.text) for passage in passages]
    sources = [{"source": passage.source} for passage in passages]
    store.get_or_compress(engine, texts, ratio=ratio, metadata=sources, progress=note)
    seconds = time.perf_counter() - started
    index.save(into)
    collection = Collection(index, store, engine, ratio)
    tokens, slots = collection.count([passage.text for passage in passages])
    report = IndexReport(
        folder=str(folder),
        into=str(into),
        model=settings.model,
        ratio=ratio,
        files=len({passage.source for passage in passages}),
        passages=len(passages),
        compressed=reports[-1].n_compressed,
        reused=reports[-1].n_hits,
        document_tokens=tokens,
        memory_slots=slots,
        seconds=seconds,
    )
    return collection, report


def open_collection(into: Path, model: str | None = None) -> Collection:
    """Open what `index_folder` made.

    Args:
        into: Where index and memories are.
        model: Name of the model; None takes the recorded one.

    Returns:
        The collection.

    Raises:
        MemoryMismatchError: If the model is not the one that the folder was indexed with.
    """
    index = PassageIndex.load(into)
    recorded = str(index.about.get("model", ""))
    engine = load_engine(model or recorded)
    if engine.fingerprint != index.about.get("fingerprint"):
        raise MemoryMismatchError(
            f"the index in {str(into)!r} was made with another model ({recorded!r} as it was then), not with "
            f"{model or recorded!r} as it is now, which cannot read its memories. Index the folder again."
        )
    return Collection(index, GistStore.open(into / "gists"), engine, int(index.about["ratio"]))


def load_engine(model: str) -> UltraGist:
    """Load an engine without progress bars of transformers."""
    logging.disable_progress_bar()
    return UltraGist.from_pretrained(model)


def check_ratio(engine: UltraGist, ratio: int | None) -> int:
    """Return the ratio to use.

    Args:
        engine: Whose config may list the ratios it was trained with.
        ratio: Wish; None for the default.

    Returns:
        The ratio.

    Raises:
        InputError: If it is not in that list, or larger than the window.
    """
    if ratio is None:
        return engine.config.ratio
    choices = sorted({engine.config.ratio, *engine.config.ratios} - {0})
    if engine.config.ratios and ratio not in choices:
        known = ", ".join(map(str, choices))
        raise InputError(f"ratio {ratio} is unknown to this model, which was trained with {known}. Use one of these.")
    if ratio > engine.config.window:
        raise InputError(
            f"ratio {ratio} is unknown to this model: its window has {engine.config.window} tokens. Use a smaller one."
        )
    return ratio


def _join(documents: Sequence[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


def _first_piece(chain: Runnable[str, str], question: str) -> tuple[str, float]:
    started = time.perf_counter()
    first: float | None = None
    answer = ""
    for piece in chain.stream(question):
        if piece and first is None:
            first = time.perf_counter() - started
        answer += piece
    return answer, first if first is not None else time.perf_counter() - started
