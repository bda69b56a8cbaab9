"""What is pushed is what `save_pretrained` writes, with a card; what cannot be pushed is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from fake_hub import FakeHub

from ultragist_rag import CheckpointError, UltraGist
from ultragist_rag.modeling.checkpoint import ADAPTER_FILE, CONFIG_FILE
from ultragist_rag.testing import tiny_engine

IDS = torch.arange(3, 25)[None]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    return FakeHub(tmp_path / "cache", monkeypatch)


def test_an_adapter_is_pushed_alone_and_found_by_its_id(hub: FakeHub, tmp_path: Path) -> None:
    engine = tiny_engine()
    engine.model.save_pretrained(
        tmp_path / "base", state_dict={k: v for k, v in engine.model.state_dict().items() if ".ultragist_" not in k}
    )
    hub.keep("me/base", tmp_path / "base")
    address = engine.push_to_hub(
        "me/gists", adapter_only=True, base="me/base", private=True, token="secret", revision="v2"
    )
    assert address == "https://huggingface.co/me/gists"
    assert hub.token == "secret"
    assert hub.calls == [
        ("create_repo", {"private": True, "exist_ok": True}),
        ("create_branch", {"repo_id": "me/gists", "branch": "v2", "exist_ok": True}),
        ("upload_folder", {"revision": "v2"}),
    ]
    [pushed] = (hub.cache / "models--me--gists" / "snapshots").iterdir()
    assert {path.name for path in pushed.iterdir()} == {ADAPTER_FILE, CONFIG_FILE, "README.md"}
    loaded = UltraGist.from_pretrained("me/gists", revision="v2")
    assert loaded.fingerprint == engine.fingerprint
    assert torch.equal(loaded.compress(IDS).keys[1], engine.compress(IDS).keys[1])
    card = (pushed / "README.md").read_text("utf-8")
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["base_model"] == "me/base"
    assert head["library_name"] == "ultragist-rag"
    assert "gist-tokens" in head["tags"]
    assert [name for name in engine.config.to_dict() if f"| `{name}` |" not in card] == []
    assert 'from_pretrained("me/gists")' in card


def test_everything_is_pushed_unless_told_otherwise(hub: FakeHub) -> None:
    engine = tiny_engine()
    engine.push_to_hub("me/whole")
    assert [name for name, _ in hub.calls] == ["create_repo", "upload_folder"]
    loaded = UltraGist.from_pretrained("me/whole")
    assert loaded.fingerprint == engine.fingerprint
    [pushed] = (hub.cache / "models--me--whole" / "snapshots").iterdir()
    assert "base_model" not in (pushed / "README.md").read_text("utf-8")


def test_what_nobody_could_load_or_the_hub_refuses_is_an_error(hub: FakeHub, tmp_path: Path) -> None:
    engine = tiny_engine()
    with pytest.raises(CheckpointError, match="where this one came from is not known"):
        engine.push_to_hub("me/gists", adapter_only=True)
    with pytest.raises(CheckpointError, match="others do not have"):
        engine.push_to_hub("me/gists", adapter_only=True, base=str(tmp_path))
    with pytest.raises(CheckpointError, match=r"no rights to other/gists\. Name a repository"):
        engine.push_to_hub("other/gists")
    with pytest.raises(CheckpointError, match="'a/b/c' cannot be pushed to"):
        engine.push_to_hub("a/b/c")
    assert hub.calls == []
