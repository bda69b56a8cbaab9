"""The page of a run in a real browser: everything shows, nothing is loaded, predictions do nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser, browser, need_browser  # noqa: F401 - the fixture
from run_records import make_rows, make_run, write_rows

from ultragist_rag.evaluation.write import write_report

EVIL = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    only = ("rag/invented", "perplexity/text", "failures/cut")
    folder = make_run(tmp_path_factory.mktemp("run"), n=4, only=only, model=EVIL)
    write_rows(folder, [{**row, "prediction": EVIL} for row in make_rows(4, only=only)])
    return write_report(folder)


def test_everything_shows_and_nothing_is_loaded(browser: Browser, report: Path) -> None:  # noqa: F811
    browser.open(report)
    assert browser.complaints() == []
    assert [one for one in browser.addresses() if not one.startswith(("data:", "file:"))] == []
    sizes = browser.evaluate("[...document.images].map(one => one.naturalWidth)")
    assert len(sizes) == len(list((report.parent / "plots").glob("*.png"))) > 3
    assert min(sizes) > 300
    rows = browser.evaluate("[...document.querySelectorAll('table')].map(one => one.tBodies[0].rows.length)")
    assert len(rows) == 3
    assert min(rows) >= 8
    assert browser.evaluate("getComputedStyle(document.querySelector('.said')).display") == "grid"
    links = "[...document.querySelectorAll('nav a')].filter(one => !document.getElementById(one.hash.slice(1))).length"
    assert browser.evaluate(links) == 0


def test_predictions_show_as_text_and_do_nothing(browser: Browser, report: Path) -> None:  # noqa: F811
    browser.open(report)
    assert browser.evaluate("document.querySelector('.said pre').textContent") == EVIL
    assert browser.evaluate("document.title") == f"Evaluation of {EVIL}"


def test_script_that_is_not_the_pages_own_is_refused(browser: Browser, report: Path) -> None:  # noqa: F811
    text = report.read_text("utf-8").replace("<h1>", f"{EVIL}<h1>")
    changed = report.parent / "changed.html"
    changed.write_text(text, encoding="utf-8")
    browser.open(changed)
    assert browser.evaluate("document.title") == f"Evaluation of {EVIL}"
    assert any("Content Security Policy" in one for one in browser.complaints())


@pytest.mark.parametrize("width", [1200, 400])
def test_page_is_as_wide_as_the_window(browser: Browser, report: Path, width: int) -> None:  # noqa: F811
    browser.open(report, width=width)
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_tables_are_sorted_by_a_click(browser: Browser, report: Path) -> None:  # noqa: F811
    browser.open(report)
    script = """(() => {
        const table = document.querySelector("#tasks ~ .scroll table"), heads = [...table.tHead.rows[0].cells];
        const place = heads.findIndex((one) => one.textContent === "slots");
        const column = () => [...table.tBodies[0].rows].map((row) => row.cells[place].textContent);
        const click = () => heads[place].querySelector("button").click();
        const before = column();
        click();
        const up = column();
        click();
        return [before, up, column()];
    })()"""
    before, up, down = browser.evaluate(script)
    numbers = [float(one) for one in up]
    assert numbers == sorted(map(float, before))
    assert list(map(float, down)) == numbers[::-1] != list(map(float, before))


def test_a_missing_browser_is_a_skip_unless_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("ULTRAGIST_TESTS_NEED", raising=False)
    with pytest.raises(pytest.skip.Exception, match="chromium"):
        need_browser()
    monkeypatch.setenv("ULTRAGIST_TESTS_NEED", "redis,chromium")
    with pytest.raises(pytest.fail.Exception, match="chromium"):
        need_browser()
