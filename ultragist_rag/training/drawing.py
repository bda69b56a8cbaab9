"""Draw the batches of a run, in the training process or in others beside it.

Is        seeded drawing in groups of batches sorted by length; workers make whole groups ahead of the steps.
Flow      samples, batches, planned -> [drawing] -> loop.
Change    how batches are grouped, how far workers run ahead.
Holds     batch n depends on the config and n alone, so a resumed run sees what an unbroken one would have.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.utils.data import DataLoader, Dataset

from ultragist_rag.errors import TrainingError
from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.training.batches import Row, RowMaker
from ultragist_rag.training.config import Mode, Stage, TrainConfig
from ultragist_rag.training.planned import Planned, in_one_pass, plan
from ultragist_rag.training.samples import Recipe
from ultragist_rag.training.setup import Source

_GROUP = 8  # batches drawn together and sorted by length, so that rows of a batch are alike
_TRIES = 50
_AHEAD = 2  # groups that each worker has ready


@dataclass(frozen=True, slots=True)
class Batch:
    """What is done with how many raw tokens, and either the rows or what was planned of them.

    `counts` is false where a process has no row of its own and takes another's, for others not to wait.
    """

    stage: Stage
    mode: Mode
    seed: str
    n_tokens: int
    rows: tuple[Row, ...] = ()
    planned: Planned | None = None
    counts: bool = True


class Drawn:
    """The batches of a run, or the share of one of several processes that each take every n-th row.

    Args:
        config: The run.
        source: Where samples come from.
        rows: Makes rows of them.
        attachment: The model, for its settings alone.
        lead: Lead token, or None.
        process: Number of this process, and how many there are.
    """

    def __init__(
        self,
        config: TrainConfig,
        source: Source,
        rows: RowMaker,
        attachment: Attachment,
        lead: int | None,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        self._config = config
        self._source = source
        self._rows = rows
        self._gists = attachment.config
        self._n_positions = attachment.n_positions
        self._lead = lead
        self._process = process
        self._group: tuple[tuple[str, int], list[list[Row]]] | None = None

    def batch(self, stage: Stage, number: int, mode: Mode | None = None, most: int | None = None) -> Batch:
        """Batch `number` of a stage, in the mode that is its turn unless another is named, of `most` rows if given."""
        rank, n_processes = self._process
        everything = self.rows_of(stage, number)[:most]
        rows = everything[rank::n_processes]
        seed = f"{self._config.seed}-{stage.name}-{number}"
        drawn = random.Random(seed).choices(list(stage.modes), weights=list(stage.modes.values()))[0]
        batch = Batch(
            stage,
            mode or drawn,
            f"{seed}-{rank}" if rank else seed,
            sum(row.n_tokens for row in everything),
            rows=tuple(rows or everything[:1]),
            counts=bool(rows),
        )
        return self._planned(batch)

    def _planned(self, batch: Batch) -> Batch:
        """Lay it out, unless it is weighed or looped over by the model first."""
        stage = batch.stage
        is_weighed = bool(stage.token_importance)
        if batch.mode != "full" and (is_weighed or not in_one_pass(self._gists, stage, batch.mode)):
            return batch
        planned = plan(
            self._gists, batch.mode, batch.rows, self._lead, stage, batch.seed, n_positions=self._n_positions
        )
        return replace(batch, rows=(), planned=planned)

    def rows_of(self, stage: Stage, number: int) -> list[Row]:
        """Rows of batch `number` of a stage."""
        key = (stage.name, number // _GROUP)
        if self._group is None or self._group[0] != key:
            self._group = (key, self._draw_group(stage, key))
        return self._group[1][number % _GROUP]

    def batches(self, start: int, end: int) -> Iterator[Batch]:
        """The batches of steps `start` to `end`, `accumulate` for each, by workers if the config has some."""
        if not self._config.workers:
            for stage, numbers in self._spans(start, end):
                for number in numbers:
                    yield self.batch(stage, number)
            return
        groups = _Groups(self, self._spans(start, end))
        loader: DataLoader[list[Batch]] = DataLoader(
            groups, batch_size=None, num_workers=self._config.workers, prefetch_factor=_AHEAD, collate_fn=_as_it_is
        )
        for group in loader:
            for batch in group:
                yield replace(batch, planned=batch.planned and batch.planned.map(torch.from_numpy))

    def _spans(self, start: int, end: int) -> list[tuple[Stage, list[int]]]:
        """Batches by groups: the stage, and their numbers in it."""
        spans: list[tuple[Stage, list[int]]] = []
        n = self._config.accumulate
        for step in range(start, end):
            stage, first = self._config.stage_at(step)
            for number in range(first * n, first * n + n):
                if spans and spans[-1][0] is stage and spans[-1][1][-1] // _GROUP == number // _GROUP:
                    spans[-1][1].append(number)
                else:
                    spans.append((stage, [number]))
        return spans

    def _draw_group(self, stage: Stage, key: tuple[str, int]) -> list[list[Row]]:
        rng = random.Random(f"{self._config.seed}-{key}")
        recipe = Recipe(stage.kinds, stage.documents, stage.lines, stage.questions, stage.max_chars, stage.real_words)
        rows: list[Row] = []
        total = misses = 0
        while total < stage.tokens * _GROUP:
            row = self._rows.row(self._source.draw(recipe, rng), rng, stage.continued_weight)
            is_long = row.n_tokens > self._config.longest or self._most_positions(stage, row) > self._n_positions
            if is_long or not any(row.weights) or not all(row.documents):
                misses += 1
                if misses > _TRIES * (len(rows) + 1):
                    raise TrainingError(
                        f"stage {stage.name} draws no sample of at most {self._config.longest} tokens that fits into "
                        f"the {self._n_positions} positions of the model."
                    )
                continue
            rows.append(row)
            total += row.n_tokens
        rows.sort(key=lambda row: row.n_tokens)
        batches: list[list[Row]] = [[] for _ in range(_GROUP)]
        done = 0
        for row in rows:
            batches[min(_GROUP - 1, done * _GROUP // total)].append(row)
            done += row.n_tokens
        batches = [batch or rows[-1:] for batch in batches]
        rng.shuffle(batches)
        return batches

    def _most_positions(self, stage: Stage, row: Row) -> int:
        """Positions that a row needs at most: memories with exact values verbatim can be longer than their text."""
        n = row.n_tokens + (self._lead is not None)
        if not stage.verbatim_share:
            return n
        window = min((*stage.windows, self._gists.window))
        for document, exact in zip(row.documents, row.exact, strict=False):
            n_windows = -(-len(document) // window)
            slots = len(exact) + len(document) // min(stage.ratios) + n_windows
            n += max(0, slots - len(document))
        return n


class _Groups(Dataset[list[Batch]]):
    """Groups of batches by number, as a data loader asks for them."""

    def __init__(self, drawn: Drawn, spans: list[tuple[Stage, list[int]]]) -> None:
        self._drawn = drawn
        self._spans = spans

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> list[Batch]:
        stage, numbers = self._spans[index]
        batches = [self._drawn.batch(stage, number) for number in numbers]
        # As arrays they come through a pipe: tensors would take a file handle each.
        return [
            replace(batch, planned=batch.planned and batch.planned.map(lambda part: part.numpy())) for batch in batches
        ]


def _as_it_is(group: list[Batch]) -> list[Batch]:
    return group
