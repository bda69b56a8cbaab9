from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from samples import sample_record

from benchmarks.record import read_records
from benchmarks.report import number, page, plot_names, write_page
from ultragist_rag.errors import InputError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_the_page_is_made_of_the_result_files() -> None:
    records = read_records(ROOT / "benchmarks" / "results")
    images = plot_names(DOCS)
    text = (DOCS / "performance.md").read_text("utf-8")
    assert text == page(records, images=images)
    assert [name for name in images if f"performance/{name}.png" not in text] == []


def test_every_number_of_a_section_stands_in_the_file() -> None:
    record = sample_record()
    section = page([record]).partition("\n## Compressing")[2]
    lines = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]
    spreads = [one for row in record.rows for one in (row.value, row.ratio) if one is not None]
    known = {number(value) for one in spreads for value in (one.median, one.q1, one.q3)}
    known |= {str(value) for row in record.rows for value in row.settings.values()} | {"3"}
    known |= {number(row.floor_value) for row in record.rows if row.floor_value}
    known |= {f"{row.share:.3f}" for row in record.rows if row.share}
    assert len(lines) == len(record.rows)
    assert {found for line in lines for found in re.findall(r"\d[\d,.]*", line)} <= known
    told = ["9,000,000", "0.15", "25.0", record.command, record.date, "some CPU", "torch 2", *record.notes]
    assert [words for words in told if words not in section] == []


def test_without_files_no_bar_is_measured_and_no_suite_has_a_section() -> None:
    text = page([])
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Bars"]
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows
    assert all("| not measured |" in row for row in rows)


def test_a_bar_shows_the_row_that_counts() -> None:
    record = sample_record()
    spread = record.rows[0].ratio
    assert spread is not None
    text = f"{number(spread.median)} ({number(spread.q1)}-{number(spread.q3)})"
    assert f"| CPU, bundled | tokens 128, batch 1, ratio 8 | at least 0.8 | {text} | yes |" in page([record])
    slower = replace(record.rows[0], ratio=spread.map(lambda ratio: ratio / 2))
    assert f"| {number(spread.median / 2)} (" in page([replace(record, rows=[*record.rows, slower])])
    assert "| no |" in page([replace(record, rows=[*record.rows, slower])])


def test_plots_lie_beside_the_page_and_old_ones_go(tmp_path: Path) -> None:
    old = tmp_path / "performance" / "old.png"
    old.parent.mkdir()
    old.write_bytes(b"")
    write_page([sample_record()], tmp_path / "performance.md")
    names = plot_names(tmp_path)
    assert names == ["cpu-bundled-compress-length"]  # one batch alone is no line
    assert (tmp_path / "performance.md").read_text("utf-8") == page([sample_record()], images=names)


def test_a_file_of_an_unknown_suite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'other', which is unknown"):
        write_page([replace(sample_record(), suite="other")], tmp_path / "performance.md")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [0.012345, 0.5, 1.0, 9.87, 12.34, 100.4, 98765.4])
def test_numbers_keep_three_digits(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=5e-3)
