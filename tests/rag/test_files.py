"""Every file named in the result was read whole, as UTF-8; one that cannot be stops the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ultragist_rag import InputError
from ultragist_rag.rag import Passage, read_folder, read_passages


def test_text_files_are_read_in_order_and_others_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "sub" / "b.MD").write_text("\ufeffbeta é", "utf-8")
    (tmp_path / "a.txt").write_text("alpha", "utf-8")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".hidden" / "c.txt").write_text("gamma", "utf-8")
    assert read_folder(tmp_path) == [("a.txt", "alpha"), ("sub/b.MD", "beta é")]


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "is empty"), (b" \n\t", "is empty"), (b"ab\0cd", "is binary"), (b"caf\xe9", "not UTF-8: byte 3")],
)
def test_unreadable_file_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "good.txt").write_text("fine", "utf-8")
    (tmp_path / "bad.txt").write_bytes(data)
    with pytest.raises(InputError, match=said) as caught:
        read_folder(tmp_path)
    assert "bad.txt" in str(caught.value)


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no \.txt or \.md file"):
        read_folder(tmp_path)


def test_passages_know_their_file_title_and_section(tmp_path: Path) -> None:
    (tmp_path / "north_sea.txt").write_text("Cold water.\n\nDeep water.", "utf-8")
    (tmp_path / "oslo.md").write_text("# Oslo\n\n## Trade\n\nFish is sold.\n", "utf-8")
    assert read_passages(tmp_path) == [
        Passage("north sea\n\nCold water.\nDeep water.", "north_sea.txt", "north sea", ""),
        Passage("Oslo - Trade\n\nFish is sold.", "oslo.md", "Oslo", "Trade"),
    ]


def test_folder_of_bare_headings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "oslo.md").write_text("# Oslo\n\n## Trade\n", "utf-8")
    with pytest.raises(InputError, match="headings only"):
        read_passages(tmp_path)
