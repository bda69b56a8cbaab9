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
from torch.utils.data import DataLoader

from ultragist_rag.errors import TrainingError
from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.training.batches import Row, RowMaker
from ultragist_rag.training.config import Stage, TrainConfig
from ultragist_rag.training.one_pass import can_lay_out
from ultragist_rag.training.planned import Planned, plan
from ultragist_rag.training.samples import Recipe
from ultragist_rag.training.setup import Source

_GROUP = 8  # batches drawn together and sorted by length, so that rows of a batch are alike
_TRIES = 50
_AHEAD = 2  # groups that each worker has ready


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: what is done, with how many raw tokens, and either the rows or what was planned of them."""

    stage: Stage
    mode: str
    seed: str
    n_tokens: int
    rows: tuple[Row, ...] = ()
    planned: Planned | None = None


class Drawn:
    """The batches of a run.

    Args:
        config: The run.
        source: Where samples come from.
        rows: Makes rows of them.
        attachment: The model, for its settings alone.
        lead: Lead token, or None.
    """

    def __init__(
        self, config: TrainConfig, source: Source, rows: RowMaker, attachment: Attachment, lead: int | None
    ) -> None:
        self._config = config
        self._source = source
        self._rows = rows
        self._gists = attachment.config
        self._n_positions = attachment.n_positions
        self._lead = lead
        self._group: tuple[tuple[str, int], list[list[Row]]] | None = None

    def batch(self, stage: Stage, number: int, mode: str | None = None) -> Batch:
        """Batch `number` of a stage, in the mode that is its turn unless another is named."""
        rows = self.rows_of(stage, number)
        seed = f"{self._config.seed}-{stage.name}-{number}"
        drawn = random.Random(seed).choices(list(stage.modes), weights=list(stage.modes.values()))[0]
        mode = mode or drawn
        n_tokens = sum(row.n_tokens for row in rows)
        if mode == "full" or (stage.one_pass and mode != "stream" and can_lay_out(self._gists)):
            planned = plan(self._gists, mode, rows, self._lead, stage, seed, self._n_positions)
            return Batch(stage, mode, seed, n_tokens, planned=planned)
        return Batch(stage, mode, seed, n_tokens, tuple(rows))

    def rows_of(self, stage: Stage, number: int) -> list[Row]:
        """Rows of batch `number` of a stage."""
        key = (stage.name, number // _GROUP)
        if self._group is None or self._group[0] != key:
            self._group = (key, self._draw_group(stage, key))
        return self._group[1][number % _GROUP]

    def batches(self, start: int, end: int) -> Iterator[Batch]:
        """The batches of steps `start` to `end`, by workers if the config has some."""
        if not self._config.workers:
            for step in range(start, end):
                yield self.batch(*self._config.stage_at(step))
            return
        groups = _Groups(self, self._spans(start, end))
        loader = DataLoader(
            groups, batch_size=None, num_workers=self._config.workers, prefetch_factor=_AHEAD, collate_fn=_as_it_is
        )
        for group in loader:
            for batch in group:
                planned = batch.planned and batch.planned.map(torch.from_numpy)
                yield replace(batch, planned=planned)

    def _spans(self, start: int, end: int) -> list[tuple[Stage, list[int]]]:
        """Steps by groups: the stage, and the numbers in it."""
        spans: list[tuple[Stage, list[int]]] = []
        for step in range(start, end):
            stage, number = self._config.stage_at(step)
            if spans and spans[-1][0] is stage and spans[-1][1][-1] // _GROUP == number // _GROUP:
                spans[-1][1].append(number)
            else:
                spans.append((stage, [number]))
        return spans

    def _draw_group(self, stage: Stage, key: tuple[str, int]) -> list[list[Row]]:
        rng = random.Random(f"{self._config.seed}-{key}")
        recipe = Recipe(stage.kinds, stage.documents, stage.lines, stage.questions, stage.max_chars)
        rows: list[Row] = []
        total = misses = 0
        while total < stage.tokens * _GROUP:
            row = self._rows.row(self._source.draw(recipe, rng), rng, stage.continued_weight)
            if row.n_tokens > self._config.longest or not any(row.weights) or not all(row.documents):
                misses += 1
                if misses > _TRIES * (len(rows) + 1):
                    raise TrainingError(f"stage {stage.name} draws no sample of at most {self._config.longest} tokens.")
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


class _Groups:
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
        return [replace(batch, planned=batch.planned and batch.planned.map(lambda part: part.numpy())) for batch in batches]


def _as_it_is(group: list[Batch]) -> list[Batch]:
    return group
