"""What docs/training.md says of keys, kinds and sizes is what the code has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaConfig, Qwen3Config
from typer.testing import CliRunner

from ultragist_rag.cli import app
from ultragist_rag.training.config import Stage, TrainConfig
from ultragist_rag.training.passages import READERS
from ultragist_rag.training.samples import KINDS, MEETINGS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/training.md").read_text("utf-8")
HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8}
QWEN = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "head_dim": 128, "vocab_size": 151936}
LLAMA = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
SHAPES: dict[str, Any] = {
    "qwen3-4b": lambda: Qwen3Config(**QWEN, **HEADS, tie_word_embeddings=True),
    "llama-3.1-8b": lambda: LlamaConfig(**LLAMA, **HEADS, tie_word_embeddings=False),
}


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_cells(text: str) -> set[str]:
    cells = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_tables_list_every_key_and_no_other() -> None:
    assert first_cells(section("Keys of the file")) == set(TrainConfig.model_fields)
    assert first_cells(section("Keys of a stage")) == set(Stage.model_fields)


def test_the_page_names_every_kind_and_every_file() -> None:
    table = section("Data")
    assert first_cells(table.split("| kind of `countries` |")[1]) == set(KINDS)
    assert [name for name in (*READERS, MEETINGS) if f"`{name}`" not in table] == []


@pytest.mark.parametrize("name", SHAPES)
def test_a_dry_run_on_the_shape_of_the_base_prints_what_the_page_shows(name: str, tmp_path: Path) -> None:
    SHAPES[name]().save_pretrained(tmp_path / "base")
    file = ROOT / "configs" / f"{name}.yaml"
    settings = TrainConfig.read(file, base=str(tmp_path / "base"))
    assert not settings.train_base
    mine = {**yaml.safe_load(file.read_text("utf-8")), "base": settings.base}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine), encoding="utf-8")
    command = ["train", "--config", f"configs/{name}.yaml", "--dry-run", "--tflops", "200"]
    shown = PAGE.split(f"ultragist-rag {' '.join(command)}\n```\n\n```text\n")[1].split("```")[0]
    command[2] = str(tmp_path / "mine.yaml")
    result = CliRunner().invoke(app, command)
    assert result.stdout == shown
    [memory] = re.findall(r"memory on one device: ([\d.]+) GB", shown)
    assert float(memory) < 80


WRONG: list[Any] = [
    pytest.param(
        {"gist": {"memory": "recurrent", "attention": "full-coverage"}}, "mode stream", id="recurrent streams"
    ),
    pytest.param({"gist": {"wndow": 8}}, "unknown settings wndow", id="unknown gist setting"),
    pytest.param({"stages": [{"kinds": {"needles": 1.0}}]}, "source jsonl knows questions, text", id="unknown kind"),
    pytest.param(
        {"source": "countries", "stages": [{"kinds": {"questions": 1.0}}]}, "none are named", id="no questions"
    ),
    pytest.param(
        {"stages": [{"kinds": {"text": 1.0}, "real_words": True}]}, "source jsonl does not know", id="real words"
    ),
]


@pytest.mark.parametrize(("change", "says"), WRONG)
def test_what_cannot_work_is_refused_when_the_file_is_read(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    settings = yaml.safe_load((ROOT / "configs/qwen3-4b.yaml").read_text("utf-8"))
    stage = {"name": "one", "steps": 1, "tokens": 9, "modes": {"joint": 1.0}}
    if "stages" in change:
        change = {**change, "stages": [{**stage, **given} for given in change["stages"]]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**settings, **change}), encoding="utf-8")
    result = CliRunner().invoke(app, ["train", "--config", str(tmp_path / "run.yaml")])
    assert result.exit_code == 2
    assert says in result.stderr
