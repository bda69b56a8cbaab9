"""Write the model card of the bundled model: nothing in it is typed by hand.

Is        sections of Markdown from the files of the model, the record of its training and what was measured.
Flow      bars, training.record -> [card] -> docs/fill_numbers.py.
Change    what the card says.
Not here  numbers -> bars.py, training/record.py; limits that follow from numbers -> limits.py.
Holds     equal files make equal cards; a number stands in one of the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ultragist_rag.evaluation.bars import base_note
from ultragist_rag.evaluation.limits import limits
from ultragist_rag.evaluation.report import interval
from ultragist_rag.training.record import TrainingRecord

__all__ = ["countries_table", "markdown_table", "measured_by", "model_card"]

_FRONT = """---
language: en
license: apache-2.0
library_name: ultragist-rag
base_model: none (trained from scratch)
---
"""
_PURPOSE = (
    "It answers short questions from short English passages, read as text or from gist memories. It is here so that "
    "the package can be tried\nand tested without a download; for real work take a larger checkpoint or train one with "
    "the same commands."
)
_HELD_OUT = (
    "Never trained on: the countries whose title has index 7 modulo 10 among the sorted Factbook titles: no profile, "
    "no question, and no text\nthat names one in its title. No text of these sources is in this repository."
)
_WRITTEN = {
    "labels": "Samples of the kind `labels` are labelled lines written by a script, most about invented places.",
    "profile": "Samples of the kind `profile` are sentences written by a script, most about invented places.",
}
"""What kinds of samples are, if they are no text of the sources."""

_REAL_WORDS = (
    "In stages with real words, words and phrases of the texts stand in what is invented or replaced: as names, as "
    "values, in lists."
)

_ASKED = (
    "`corpus` and `factbook` are questions about countries that training never saw; each comes with the chunk that "
    "answers it and three others\n(one of the same country), shuffled. `corpus` is `examples/corpus`, `factbook` its "
    "source's own text. `composed` memories are made one\ndocument at a time, `joint` ones in one stream. Exact match "
    "after SQuAD normalisation, bootstrap intervals over questions."
)
_HELD = (
    "Where a call says nothing else, answers are held to the words of the documents: rows with `+source_bias`. What is "
    "kept is then of the better\nfull-text score with and without it. Needles and general reading are asked that way."
)
_NEEDLES = (
    "One value among others that look like it, in pages about places that do not exist: words (`mk_word`), numbers, "
    "UUIDs. `gist+codes` keeps\nnumbers and codes verbatim, in no more slots than gists alone would take."
)
_READING = "XQuAD (English) and PolicyQA, each text among others of its file."
_PERPLEXITY = "WikiText-2, the tokens behind a context that is read as text or from memories; less is better."


def model_card(folder: Path, measured: Mapping[str, Any], training: TrainingRecord | None) -> str:
    """Write the card.

    Args:
        folder: The model: its configs and weights.
        measured: What `ultragist-rag bars --output` wrote.
        training: The record of its training; None if there is none.

    Returns:
        The card as Markdown.
    """
    config = _json(folder / "config.json")
    gist = _json(folder / "ultragist_config.json")["gist_config"]
    parts = [
        f"{_FRONT}\n# The bundled model",
        f"{_sizes(folder, config)} {_gists(gist)}\n{_PURPOSE}",
        "## How it was trained",
        *(["There is no record of this training."] if training is None else _training(training)),
        "## What it does",
        *([_ASKED, _HELD] if measured["source_bias"] else [_ASKED]),
        _bars(measured),
        f"### Unseen countries\n\n{countries_table(measured['countries'])}",
        *_task_sections(measured["tasks"]),
        measured_by(measured),
        "## Limits",
        "\n".join(f"- {line}" for line in limits(measured, gist["ratios"])),
    ]
    return "\n\n".join(parts) + "\n"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A table whose columns stand right, but for the first ones."""
    rule = ["---"] * left + ["--:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def countries_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """What was answered about unseen countries, as a Markdown table."""
    head = ["questions", "read from", "ratio", "exact match (95 %)", "kept (95 %)", "above joint (95 %)"]
    return markdown_table(
        [*head, "unseen wordings (95 %)"],
        [
            [
                f"{row['task']} ({row['questions']})",
                row["method"],
                _ratio(row),
                *(_interval(row[name]) for name in ("exact_match", "retention", "against_joint", "unseen")),
            ]
            for row in rows
        ],
        2,
    )


def measured_by(measured: Mapping[str, Any]) -> str:
    """Say by which command, on what and when something was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    where = f"{measured['device']}, {measured['dtype']}, {measured['date']}"
    return (
        f"Printed by `{measured['command']}` ({versions}; {where}), with the weights of fingerprint\n"
        f"`{measured['fingerprint']}`. {base_note(measured['base'])}"
    )


def _sizes(folder: Path, config: Mapping[str, Any]) -> str:
    base, adapter = folder / "model.safetensors", folder / "ultragist_adapter.safetensors"
    shape = (
        f"{config['num_hidden_layers']} layers, width {config['hidden_size']}, {config['num_attention_heads']} heads, "
        f"{config['num_key_value_heads']} of keys and values, {config['max_position_embeddings']} positions, "
        f"{config['vocab_size']} tokens in the vocabulary"
    )
    return (
        f"A {config['model_type']} model of {_millions(base)} parameters ({shape})\nand a gist adapter of "
        f"{_millions(adapter)}, in {config['dtype']}: {_megabytes(base)} and {_megabytes(adapter)}."
    )


def _gists(gist: Mapping[str, Any]) -> str:
    ratios = ", ".join(map(str, gist["ratios"]))
    return f"Gists stand for windows of {gist['window']} tokens at ratios {ratios}; {gist['ratio']} is the default."


def _training(record: TrainingRecord) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    stages = [
        [
            stage.name,
            _shares(stage.kinds) + ("; real words" if stage.real_words else ""),
            _shares(stage.modes),
            ", ".join(map(str, stage.ratios)),
            f"{stage.steps:,}",
            f"{stage.tokens:,}",
        ]
        for stage in record.stages
    ]
    head = ["stage", "samples", "read as", "ratios", "steps", "tokens"]
    files = [[f"`{one.file}`", one.name, one.source, one.licence] for one in record.files]
    size = f"{record.steps:,} steps over {record.tokens:,} tokens in {record.seconds / 3600:.1f} hours"
    written = sorted({kind for stage in record.stages for kind in stage.kinds} & _WRITTEN.keys())
    real = [_REAL_WORDS] if any(stage.real_words for stage in record.stages) else []
    return [
        f"`ultragist-rag train --config configs/{record.config} --data DATA`, seed {record.seed}: {size}\non "
        f"{record.device}, {record.date} ({versions}).",
        markdown_table(head, stages, 4),
        *(
            ["What a run of this config would do otherwise:", "\n".join(f"- {note}" for note in record.notes)]
            if record.notes
            else []
        ),
        "## Data",
        markdown_table(["file", "data", "source", "licence"], files, 4),
        "\n".join([_HELD_OUT, *(_WRITTEN[kind] for kind in written), *real]),
    ]


def _bars(measured: Mapping[str, Any]) -> str:
    bars = [bar for bar in measured["bars"] if bar["bar"] is not None]
    rows = [
        [
            bar["what"],
            _interval(bar["value"]) or "nothing to keep",
            f"{bar['bar']:.2f}",
            "yes" if bar["met"] else "no",
            str(bar["questions"]),
        ]
        for bar in bars
    ]
    met = {plain: [bar["met"] for bar in bars if bar["plain"] is plain] for plain in (False, True)}
    bias = measured["source_bias"]
    said = f"{sum(met[False])} of {len(met[False])} are met"
    if met[True]:
        said += f" as the model answers by default (`source_bias` {bias:g})"
        said += f", {sum(met[True])} of {len(met[True])} by plain decoding"
    table = markdown_table(["bar", "measured (95 %)", "at least", "met", "questions"], rows, 1)
    return f"### Bars\n\n{said}.\n\n{table}"


def _task_sections(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tasks that have something to keep, general reading, and perplexity."""
    perplexities = [row for row in rows if row["metric"] == "ppl"]
    needles = [row for row in rows if row["metric"] == "subem"]
    reading = [row for row in rows if row["metric"] in {"em", "f1"}]
    return [
        f"### {title}\n\n{what}\n\n{_tasks_table(some)}"
        for title, what, some in (
            ("Needles", _NEEDLES, needles),
            ("General reading", _READING, reading),
            ("Perplexity", _PERPLEXITY, perplexities),
        )
    ]


def _tasks_table(rows: Sequence[Mapping[str, Any]]) -> str:
    has_kept = any(row["kept"] is not None for row in rows)
    head = ["task", "read from", "metric", "ratio", "score (95 %)", *(["kept (95 %)"] if has_kept else [])]
    return markdown_table(
        head,
        [
            [
                f"{row['task']} ({row['questions']})",
                row["method"],
                row["metric"],
                _ratio(row),
                *(_interval(row[name]) for name in (["score", "kept"] if has_kept else ["score"])),
            ]
            for row in rows
        ],
        3,
    )


def _ratio(row: Mapping[str, Any]) -> str:
    return "" if row["ratio"] is None else str(row["ratio"])


def _interval(values: Sequence[float] | None) -> str:
    return "" if values is None else interval(values)


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:g}" for name, share in shares.items())


def _millions(weights: Path) -> str:
    with safe_open(weights, framework="pt") as file:
        n_parameters = sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no mapping
    return f"{n_parameters / 1e6:.1f} M"


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
