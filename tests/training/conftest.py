"""A small data folder in the layout of the country data, and a config that trains on it in seconds."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from ultragist_rag.training.config import TrainConfig

_STEMS = ("Alba", "Bera", "Cora", "Dena", "Elka", "Fora", "Gila", "Hesta", "Ilma", "Jura", "Kira", "Lora")
NAMES = [f"{word}land" for word in _STEMS]
_PROFILE = """# {name} (World Factbook country profile)

## Geography

Location: the {place} of the world

Area
total: {number},581 sq km

Coastline: {number} km

Elevation
highest point: Mount {name}er {number} m
lowest point: {name} Sea -{digit} m

Climate: {place} and mild; wet in winter

## People and Society

Population
total: 1{number},436 (2025 est.)

Languages
Languages: {name}ish (official) 68.1%, other 2%
"""

_ASKED = {"question": "Who built it?", "answers": ["old masons"]}
_HELD = {"question": "What is it?", "answers": ["a hill"]}
_ROWS = "name,height\nAda,12\nBob,34\n" + "".join(f"filler {i},{'x' * 60}\n" for i in range(30)) + "Zoe,99\n"
PEOPLES: dict[str, list[dict[str, object]]] = {
    "qamr_wiki": [
        {"context": f"Gate {i} was built by old masons.", "qas": [{**_ASKED, "question": f"Who built gate {i}?"}]}
        for i in range(12)
    ]
    + [{"context": "Hestaland, they say, is a hill.", "qas": [_HELD]}],
    "policyqa_dev": [
        {"title": "p", "context": "We keep logs for a week.", "question": "How long?", "answers": ["a week", "week"]},
        {"title": "p", "context": "We keep nothing.", "question": "Why?", "answers": []},
        {"title": "p", "context": "We keep nothing.", "question": "Why?", "answers": ["not in the text"]},
        {"title": "Hestaland", "context": "It is a hill.", "question": "What is it?", "answers": ["a hill"]},
    ],
    "selqa_dev": [
        {
            "title": "t",
            "section": "s",
            "context": "It rained. Old masons came. They left.",
            "question": "Who came?",
            "answer_sentences": ["Old masons came."],
        },
        {"title": "t", "section": "s", "context": "Of Hestaland.", "question": "?", "answer_sentences": ["Of"]},
    ],
    "covidqa_200423": [
        {"context": "A long paper. " * 300 + "It was built by old masons. " + "More of it. " * 300, "qas": [_ASKED]},
    ],
    "wikitablequestions_train": [
        {
            "title": "Heights",
            "csv": _ROWS,
            "qas": [
                {"question": "How high is Bob?", "answers": ["34"]},
                {"question": "How high is Zoe?", "answers": ["99"]},
            ],
        },
        {"title": "Empty", "csv": "name\n", "qas": [_ASKED]},
    ],
    "qmsum_train": [
        {
            "meeting_transcripts": [
                {"speaker": "Ann", "content": "let us begin"},
                {"speaker": "Ben", "content": "yes"},
            ],
            "general_query_list": [{"query": "Summarize", "answer": "They began."}],
            "specific_query_list": [{"query": "Who agreed", "answer": "Ben did."}],
        }
    ],
}
"""People's questions, one small file of each layout; some name the held-out country, some have no answer."""


def _write(path: Path, records: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="session")
def country_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    places = ("north", "south", "west", "east")
    texts = [
        _PROFILE.format(name=name, place=places[i % 4], number=100 + 37 * i, digit=i + 1)
        for i, name in enumerate(NAMES)
    ]
    _write(folder / "train" / "factbook.jsonl.xz", [{"title": n, "text": t} for n, t in zip(NAMES, texts, strict=True)])
    _write(folder / "train" / "wikipedia-00.jsonl.xz", [{"title": n, "text": f"{n} is a place. " * 60} for n in NAMES])
    sections = [
        {
            "title": name,
            "section": "Geography",
            "context": f"{name} - Geography\n\n" + text.split("## Geography\n\n")[1].split("\n## ")[0],
            "qas": [
                {"question": f"How long is the coastline of {name}?", "answers": [f"{100 + 37 * i} km"]},
                {"question": f"What is the total area of {name}?", "answers": [f"{100 + 37 * i},581 sq km"]},
            ],
        }
        for i, (name, text) in enumerate(zip(NAMES, texts, strict=True))
    ]
    _write(folder / "qa_train" / "factbook_template_qa.jsonl.xz", sections)
    for name, records in PEOPLES.items():
        _write(folder / "qa_train" / f"{name}.jsonl.xz", records)
    return folder


@pytest.fixture
def tiny_run(country_data: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        output=tmp_path / "run",
        data=country_data,
        source="countries",
        model={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "max_position_embeddings": 1024,
        },
        vocabulary=400,
        tokenizer_samples=50,
        gist={"window": 32, "ratio": 4},
        optimizer="muon",
        lr=0.002,
        warmup=2,
        checkpoint_every=2,
        stages=[
            {"name": "read", "steps": 2, "tokens": 400, "kinds": {"labels": 1.0, "factbook": 1.0}},
            {
                "name": "remember",
                "steps": 4,
                "tokens": 400,
                "kinds": {"profile": 0.8, "text": 0.2},
                "modes": {"independent": 1.0, "joint": 1.0, "full": 1.0},
                "documents": [1, 3],
                "max_chars": 300,
                "windows": [16, 32],
            },
        ],
    )
