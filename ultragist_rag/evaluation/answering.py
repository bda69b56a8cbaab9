"""Answer cases from the full text, from memories, or from nothing.

Is        one function for each way to show the documents to the model; batches through the front door.
Flow      heldout, engine -> [answering] -> report, quantised.
Change    how a prompt is laid out, which methods there are.
Holds     all methods ask the same questions in the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from ultragist_rag.engine import UltraGist
from ultragist_rag.evaluation.heldout import Case
from ultragist_rag.memory.memory import GistMemory

_JOIN = "\n\n"
_MAX_NEW_TOKENS = 96
Pieces = list[str | GistMemory]


def predict(
    engine: UltraGist,
    cases: Sequence[Case],
    method: str,
    ratio: int | None,
    batch: int = 16,
    source_bias: float = 0.0,
) -> list[str]:
    """Answers of one method.

    Args:
        engine: The model.
        cases: Questions with documents.
        method: `full`, `composed` (documents compressed one by one), `joint` (one stream) or `closed` (no document).
        ratio: Raw tokens per gist, for the two methods with memories.
        batch: Prompts decoded together.
        source_bias: How strongly answers are held to the words of their prompts, see `Decoding`.

    Returns:
        One answer per case, without surrounding blanks.
    """
    # Cases of like length are read together, and what several cases share is compressed once.
    order = sorted(range(len(cases)), key=lambda place: sum(map(len, cases[place].documents)))
    answers: dict[int, str] = {}
    memories: dict[str, GistMemory] = {}
    name = method if ratio is None else f"{method} x{ratio}"
    with tqdm(total=len(cases), desc=name, unit="question") as bar:
        for start in range(0, len(cases), batch):
            places = order[start : start + batch]
            part = [cases[place] for place in places]
            if method == "composed":
                memories |= compress_documents(engine, part, ratio, memories)
                prompts = compose(part, memories)
            else:
                prompts = lay_out(engine, part, method, ratio)
            answers.update(zip(places, read(engine, prompts, source_bias), strict=True))
            bar.update(len(part))
    return [answers[place] for place in range(len(cases))]


def lay_out(engine: UltraGist, cases: Sequence[Case], method: str, ratio: int | None) -> list[Pieces]:
    """Prompts of a method, one for each case; methods and ratios are those of `predict`."""
    return _LAYOUTS[method](engine, cases, ratio)


def read(engine: UltraGist, prompts: Sequence[Pieces], source_bias: float = 0.0) -> list[str]:
    """One line of answer for each prompt, without surrounding blanks."""
    settings: dict[str, Any] = {"max_new_tokens": _MAX_NEW_TOKENS, "do_sample": False, "source_bias": source_bias}
    settings["stop"] = ["\n"]
    return [text.strip() for text in engine.generate(list(prompts), **settings)]


def _question(case: Case) -> str:
    return f"Question: {case.question}\nAnswer:"


def _full(_engine: UltraGist, cases: Sequence[Case], _ratio: int | None) -> list[Pieces]:
    return [[_JOIN.join((*case.documents, _question(case)))] for case in cases]


def _closed(_engine: UltraGist, cases: Sequence[Case], _ratio: int | None) -> list[Pieces]:
    return [[_question(case)] for case in cases]


def _composed(engine: UltraGist, cases: Sequence[Case], ratio: int | None) -> list[Pieces]:
    return compose(cases, compress_documents(engine, cases, ratio))


def compress_documents(
    engine: UltraGist, cases: Sequence[Case], ratio: int | None, known: Container[str] = ()
) -> dict[str, GistMemory]:
    """The memory of each different document of some cases, but for those that are known."""
    documents = list(dict.fromkeys(text for case in cases for text in case.documents if text not in known))
    return dict(zip(documents, engine.compress(documents, ratio=ratio), strict=True))


def compose(cases: Sequence[Case], memories: Mapping[str, GistMemory]) -> list[Pieces]:
    """Prompts with a memory for each document, then the question."""
    prompts: list[Pieces] = []
    for case in cases:
        pieces: Pieces = []
        for document in case.documents:
            pieces += [memories[document], _JOIN]
        prompts.append([*pieces[:-1], _JOIN + _question(case)])
    return prompts


def _joint(engine: UltraGist, cases: Sequence[Case], ratio: int | None) -> list[Pieces]:
    memories = engine.compress([_JOIN.join(case.documents) + _JOIN for case in cases], ratio=ratio, joint=True)
    return [[memory, _question(case)] for memory, case in zip(memories, cases, strict=True)]


_LAYOUTS: dict[str, Callable[[UltraGist, Sequence[Case], int | None], list[Pieces]]] = {
    "full": _full,
    "closed": _closed,
    "composed": _composed,
    "joint": _joint,
}
