"""Code completion: the next line of a file, after other files of its project.

Is        samples of our own, and a reader of RepoBench.
Flow      rows, fitting, modules.yaml -> [code] -> tasks.
Paper     RepoBench, arXiv 2306.03091; edit similarity as in arXiv 2412.17483, table 8.
Change    how files are laid out, what is kept if there is too little room.
Holds     of the file that is completed the end is kept, of the others those that fit, the one that is needed first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ultragist_rag.evaluation.data import Source
from ultragist_rag.evaluation.scores import edit_similarity
from ultragist_rag.evaluation.task import Sample, Scores, Task
from ultragist_rag.evaluation.tasks.fitting import SEPARATOR, Room
from ultragist_rag.evaluation.tasks.rows import Row, rows
from ultragist_rag.evaluation.tasks.shipped import shipped

__all__ = ["TASKS"]


def _layout(path: str, code: str) -> str:
    return f"# {path}\n{code.strip()}"


def _sample(
    source: Source, name: str, files: Sequence[str], needed: Sequence[int], begun: str, next_line: str
) -> Sample:
    room = Room(source)
    kept = _kept(room, files, needed)
    return Sample(
        id=name,
        documents=tuple(files[place] for place in kept),
        tail=f"{SEPARATOR}{_end(source, begun)}",
        answers=(next_line.strip(),),
        gold=tuple(kept.index(place) for place in needed if place in kept),
    )


def _kept(room: Room, files: Sequence[str], needed: Sequence[int]) -> list[int]:
    """Choose files that fit together, those that are needed first."""
    kept: list[int] = []
    for place in dict.fromkeys((*needed, *range(len(files)))):
        chosen = sorted([*kept, place])
        if room.fits(SEPARATOR.join(files[one] for one in chosen)):
            kept = chosen
    return kept


def _end(source: Source, begun: str) -> str:
    """Cut a begun file to whole lines at its end, in half of the room."""
    lines = begun.rstrip().splitlines()
    while len(lines) > 1 and source.count("\n".join(lines)) > source.room // 2:
        lines = lines[max(1, len(lines) // 8) :]
    return "\n".join(lines) + "\n"


def _own(source: Source) -> Iterator[Sample]:
    for project in shipped("modules.yaml"):
        files: Mapping[str, str] = project["files"]
        yield _sample(
            source,
            project["id"],
            [_layout(path, code) for path, code in files.items()],
            project["gold"],
            _layout(project["path"], project["code"]),
            project["next"],
        )


def _repobench(source: Source) -> Iterator[Sample]:
    """Yield files with snippets of others; one of which nothing fits into the room is left out."""
    for number, row in enumerate(rows(source)):
        files = [_layout(*_snippet(part)) for part in row.parts("context")]
        gold = row.first(("gold_snippet_index",))
        needed = [gold] if isinstance(gold, int) and 0 <= gold < len(files) else []
        begun = f"{row.values.get('import_statement') or ''}\n{row.text('cropped_code', 'code')}".strip()
        path = row.first(("file_path",))
        begun = _layout(path, begun) if isinstance(path, str) else begun
        sample = _sample(source, f"{number:05d}", files, needed, begun, row.text("next_line"))
        if sample.documents:
            yield sample


def _snippet(part: Row) -> tuple[str, str]:
    return part.text("path"), part.text("snippet")


def _score(sample: Sample, prediction: str) -> Scores:
    """Compare the first line of code, as RepoBench does: neither empty nor a comment."""
    lines = (line.strip() for line in prediction.splitlines())
    said = next((line for line in lines if line and not line.startswith("#")), "")
    return max((edit_similarity(said, answer) for answer in sample.answers), key=lambda scores: scores["edit"])


TASKS: tuple[Task, ...] = (
    Task(name="code/own", load=_own, score=_score, metric="edit", n_new=48, stop=(), lm_needed=True),
    Task(
        name="code/repobench",
        load=_repobench,
        score=_score,
        metric="edit",
        n_new=48,
        stop=(),
        files={
            "test": (
                *("repobench.jsonl", "repobench_python.jsonl"),
                *("cross_file_first.jsonl", "cross_file_random.jsonl", "in_file.jsonl"),
            )
        },
        source="RepoBench 1.1, Liu et al. 2023; Creative Commons, see its card",
        lm_needed=True,
    ),
)
