"""Draw training samples from the user's own JSON lines.

Is        a sample source over files, plain or `.xz`; each line is `{"text": ...}` or
          `{"documents": [...], "pairs": [[question, answer], ...]}`.
Flow      [jsonl] -> samples -> batches.
Change    which layouts of a line are understood.
"""

from __future__ import annotations

import json
import lzma
import random
from pathlib import Path
from typing import Any

from ultragist_rag.errors import TrainingError
from ultragist_rag.training.samples import Recipe, Sample

JSONL_KINDS = ("questions", "text")


class JsonlSource:
    """Draws samples of `JSONL_KINDS` from one file or all `.jsonl`/`.jsonl.xz` files of a folder.

    Args:
        path: File or folder.

    Raises:
        TrainingError: If there is no such file, or a line is not understood.
    """

    def __init__(self, path: Path) -> None:
        files = sorted(path.glob("*.jsonl*")) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise TrainingError(f"{path} holds no .jsonl files. See docs/training.md for their format.")
        self.texts: list[str] = []
        self.questions: list[Sample] = []
        for file in files:
            with lzma.open(file, "rt") if file.suffix == ".xz" else file.open() as lines:
                for number, line in enumerate(lines, 1):
                    self._add(line, f"{file}:{number}")

    def _add(self, line: str, where: str) -> None:
        try:
            record: Any = json.loads(line)
            if "text" in record:
                self.texts.append(str(record["text"]))
                return
            pairs = tuple((str(question), str(answer)) for question, answer in record["pairs"])
            documents = tuple(map(str, record["documents"]))
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{where} is no sample ({error!r}). See docs/training.md for the format.") from error
        if not documents or not pairs:
            raise TrainingError(f"{where} has no documents or no pairs. Give at least one of each.")
        self.questions.append(Sample(documents, pairs))

    def draw(self, recipe: Recipe, rng: random.Random) -> Sample:
        """One sample: a text cut to `max_chars`, or documents in new order with some of their questions.

        Raises:
            TrainingError: If the files hold no sample of the kind drawn.
        """
        kind = rng.choices(list(recipe.kinds), weights=list(recipe.kinds.values()))[0]
        if kind == "text" and self.texts:
            text = rng.choice(self.texts)
            start = rng.randrange(max(1, len(text) - recipe.max_chars + 1))
            return Sample((text[start : start + recipe.max_chars],), ())
        if kind == "questions" and self.questions:
            sample = rng.choice(self.questions)
            documents = rng.sample(sample.documents, len(sample.documents))
            pairs = rng.sample(sample.pairs, min(recipe.questions, len(sample.pairs)))
            return Sample(tuple(documents), tuple(pairs))
        raise TrainingError(f"the data holds no samples of kind {kind!r}; kinds are `text` and `questions`.")
