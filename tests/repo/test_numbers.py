"""Numbers in README and model card are those of the files that the commands wrote."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

from ultragist_rag import UltraGist

ROOT = Path(__file__).parents[2]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill_numbers", ROOT / "docs" / "fill_numbers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_card_is_what_the_files_say() -> None:
    script = _script()
    assert script.CARD.read_text(encoding="utf-8") == script.card()


def test_what_was_measured_was_measured_with_the_weights_that_are_shipped() -> None:
    record = _script().measured()
    shipped = UltraGist.from_pretrained(record["model"])
    assert (shipped.fingerprint, shipped.source_bias) == (record["fingerprint"], record["source_bias"])
    assert record["model"] == "bundled"


def test_pages_hold_the_numbers_of_the_commands() -> None:
    script = _script()
    for name, blocks in script.BLOCKS.items():
        page = (ROOT / name).read_text(encoding="utf-8")
        assert script.filled_page(page, name) == page
        for mark, make in blocks.items():
            assert f"<!-- {mark}:begin -->\n{make()}\n<!-- {mark}:end -->" in page
    assert script.fill("<!-- a:begin -->\nold\n<!-- a:end -->", "a", "new") == "<!-- a:begin -->\nnew\n<!-- a:end -->"


def test_the_page_of_results_is_made_of_the_runs_that_are_kept_beside_it() -> None:
    from ultragist_rag.evaluation.ablation_page import ablation_section, read_ablation
    from ultragist_rag.evaluation.failures.section import failures_section
    from ultragist_rag.evaluation.records import read_run
    from ultragist_rag.evaluation.results_page import results_markdown

    results = ROOT / "docs" / "results"
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    names = re.findall(r"^## (\w+)$", page, re.MULTILINE)
    assert sorted(names) == sorted(path.name for path in (results / "runs").iterdir())
    runs = [read_run(results / "runs" / name) for name in names]
    images = {path.stem: f"results/plots/{path.name}" for path in (results / "plots").iterdir()}
    last = [ablation_section(read_ablation(results / "ablation.json"))]
    assert results_markdown(runs, images, more=[failures_section], last=last) == page
    assert all(address in page for address in images.values())


def test_quantised_memories_answer_as_well_as_promised() -> None:
    record = json.loads((_script().RESULTS / "quantisation.json").read_text(encoding="utf-8"))
    rows = {row["dtype"]: row for row in record["rows"]}
    assert min(row["questions"] for row in rows.values()) >= 150
    assert rows["int8"]["difference"][0] >= -0.01
    assert rows["int4"]["difference"][0] >= -0.03
