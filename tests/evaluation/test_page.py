"""The page is one file that loads nothing and lets nothing run that a prediction says."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from run_records import make_rows, make_run, write_rows

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation import write
from ultragist_rag.evaluation.examples import examples
from ultragist_rag.evaluation.page import Section
from ultragist_rag.evaluation.records import Run
from ultragist_rag.evaluation.summary import read_run
from ultragist_rag.evaluation.wording import visible
from ultragist_rag.evaluation.write import PAGE, PLOTS, TABLE, write_report

EVIL = "</pre><script>alert(1)</script><img src=//evil.example/x onerror=alert(2)>\u202e{{ 7 * 7 }}"
ONLY = ("rag/invented", "perplexity/text", "failures/cut")


class Page(HTMLParser):
    """Tags with their attributes, and the text between."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inner: dict[str, list[str]] = {}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        self.inner.setdefault(self._open, []).append(data)


def _more(run: Run) -> Section:
    figure = Figure()
    figure.subplots().plot([1, 2])
    return Section(title=f"Patterns of {run.name}", lines=[f"Window: {EVIL}"], figures={"A curve.": figure})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("run"), n=4, only=ONLY, model=EVIL, left_out=[EVIL])
    write_rows(folder, [{**row, "prediction": EVIL} for row in make_rows(4, only=ONLY)])
    (folder / PLOTS).mkdir()
    (folder / PLOTS / "of-an-older-report.png").write_bytes(b"")
    write_report(folder, more=[_more, lambda run: None])
    return folder


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / PAGE).read_text("utf-8")


def test_report_is_three_kinds_of_files(folder: Path) -> None:
    made = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    plots = {f"{PLOTS}/{name}.png" for name in ("overview", "perplexity", "task-rag-invented", "task-perplexity-text")}
    assert made == {"run.json", "records.jsonl", TABLE, PAGE, *plots}
    assert "\n| rag/invented |" in (folder / TABLE).read_text("utf-8")


def test_page_loads_nothing(text: str) -> None:
    tags = Page(text).tags
    assert not re.search(r"https?:", text)
    for tag, attributes in tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
    assert sum(tag == "img" for tag, _ in tags) == 5  # four plots and one of the further section
    assert sum(tag == "table" for tag, _ in tags) == 3
    assert "url(" not in text
    assert "@import" not in text


def test_policy_names_the_only_style_and_script(text: str) -> None:
    page = Page(text)
    (policy,) = (one["content"] for tag, one in page.tags if one.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_predictions_are_text(text: str) -> None:
    page = Page(text)
    assert [one for tag, one in page.tags if tag == "script"] == [{}]
    assert not [one for _, one in page.tags if any(name.startswith("on") or name == "style" for name in one)]
    assert "evil.example" in text
    assert "{{ 7 * 7 }}" in "".join(page.inner["pre"])
    assert "\u202e" not in text
    assert "[U+202E]" in "".join(page.inner["pre"])


def test_report_is_the_same_twice(folder: Path, text: str) -> None:
    write_report(folder, more=[_more])
    assert (folder / PAGE).read_text("utf-8") == text


def test_examples_stand_side_by_side(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, n=12))
    found = dict(examples(run))
    assert "perplexity/text" not in found
    for shown in found.values():
        assert 1 <= len(shown) <= 4
        for one in shown:
            assert [said.label.split(":")[0] for said in one.said] == ["full text", "gist, ratio 4", "gist, ratio 32"]
    (whys,) = ({one.why for one in shown} for name, shown in found.items() if name == "recall/uuid")
    assert whys == {"wrong from both"}


def test_hidden_characters_are_shown_and_long_predictions_cut(tmp_path: Path) -> None:
    assert visible("a\x00b\n") == "a[U+0000]b\n"
    write_rows(make_run(tmp_path, only=ONLY), [{**row, "prediction": "x" * 10_000} for row in make_rows(2, only=ONLY)])
    shown = dict(examples(read_run(tmp_path)))["rag/invented"]
    assert all(100 < len(said.text) < 500 for one in shown for said in one.said)


def test_missing_matplotlib_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install 'ultragist-rag\\[eval\\]'"):
        write_report(folder)
