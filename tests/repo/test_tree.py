"""House rules that no linter knows: short files, documented names, no leftovers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE_FOLDERS = ("ultragist_rag", "integrations", "examples", "benchmarks", "tests")
SOURCES = sorted(path for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py"))
LIBRARY = [
    path for path in SOURCES if path.relative_to(ROOT).parts[0] in {"ultragist_rag", "integrations", "benchmarks"}
]
FORBIDDEN_STEMS = {"utils", "util", "helpers", "common", "misc"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_file_has_at_most_350_lines(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 350


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_leftovers(path: Path) -> None:
    text = path.read_text("utf-8")
    assert path.stem not in FORBIDDEN_STEMS
    assert not re.search(r"_v\d+$|_old$|_new$", path.stem)
    if path != Path(__file__):
        assert not re.search(r"\b(?:TODO|FIXME|XXX|HACK)\b|\bbreakpoint\(", text)


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_longer_module_says_what_it_is(path: Path) -> None:
    text = path.read_text("utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert docstring or not text.strip()
    if len(text.splitlines()) > 30 and path.name != "__init__.py":
        assert re.search(r"^Is {2,}", docstring, re.MULTILINE), "the header has no `Is` line"


def public_names(package: Path) -> list[str]:
    tree = ast.parse((package / "__init__.py").read_text("utf-8"))
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return list(ast.literal_eval(node.value))
    return []


@pytest.mark.parametrize(
    "package", ["ultragist_rag", "integrations/langchain_ultragist", "integrations/llama_index_ultragist"]
)
def test_every_public_name_is_in_the_docs(package: str) -> None:
    docs = "\n".join(path.read_text("utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    names = public_names(ROOT / package)
    assert names == sorted(names)
    assert names
    missing = [name for name in names if not name.startswith("__") and not re.search(rf"\b{re.escape(name)}\b", docs)]
    assert missing == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 120
