"""A hub in a folder: what is pushed goes into huggingface_hub's cache, out of which models are loaded offline."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

COMMIT = "0" * 40
ASKED_FOR = (
    "ultragist_config.json",
    "ultragist_adapter.safetensors",
    "ultragist_calibration.json",
    "adapter_config.json",
)
"""Files that loading looks for; the cache knows of those that a repository lacks."""


class FakeHub:
    """Takes what `HfApi` is called with and keeps pushed folders as a cache does."""

    def __init__(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = cache
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.token: str | None = None
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        monkeypatch.setattr("huggingface_hub.HfApi", self._api)

    def _api(self, token: str | None = None) -> FakeHub:
        self.token = token
        return self

    def create_repo(self, repo_id: str, **settings: Any) -> str:
        validate_repo_id(repo_id)
        if repo_id.startswith("other/"):
            raise HFValidationError(f"no rights to {repo_id}.\nmore lines")
        self.calls.append(("create_repo", settings))
        return f"https://huggingface.co/{repo_id}"

    def create_branch(self, repo_id: str, **settings: Any) -> None:
        self.calls.append(("create_branch", {"repo_id": repo_id, **settings}))

    def upload_folder(self, repo_id: str, folder_path: Path, revision: str | None = None) -> None:
        self.calls.append(("upload_folder", {"revision": revision}))
        self.keep(repo_id, folder_path, revision or "main")

    def keep(self, repo_id: str, folder: Path, revision: str = "main") -> Path:
        """Copy a folder into the cache; return where it lies there."""
        place = self.cache / f"models--{repo_id.replace('/', '--')}"
        shutil.copytree(folder, place / "snapshots" / COMMIT, dirs_exist_ok=True)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / revision).write_text(COMMIT)
        for name in ASKED_FOR:
            if not (folder / name).exists():
                (place / ".no_exist" / COMMIT).mkdir(parents=True, exist_ok=True)
                (place / ".no_exist" / COMMIT / name).touch()
        return place / "snapshots" / COMMIT
