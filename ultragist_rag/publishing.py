"""Publish a model with its gist weights on the Hugging Face hub.

Is        a folder of `save_pretrained` with a model card, uploaded by huggingface_hub.
Flow      modeling -> [publishing] -> engine.
Change    what the card says.
Not here  what a saved folder holds -> modeling/saving.py; fetching from the hub -> modeling/loading.py.
Holds     what is pushed is what `save_pretrained` writes, and is loaded by `from_pretrained` of the same id.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ultragist_rag.errors import CheckpointError
from ultragist_rag.modeling.calibration import Calibration
from ultragist_rag.modeling.checkpoint import CONFIG_FILE

if TYPE_CHECKING:
    from ultragist_rag.engine import UltraGist

__all__ = ["hub_card", "push"]

_TAGS = ["gist-tokens", "kv-cache-compression", "retrieval-augmented-generation"]
_VERDICTS = {True: "good", False: "not good", None: "unknown"}
_USE = """from ultragist_rag import UltraGist

gist = UltraGist.from_pretrained("{repo}")
memory = gist.compress("A document that is read many times.")
print(gist.generate([memory, "\\n\\nQuestion: How often is the document read?\\nAnswer:"]))"""


def push(  # noqa: PLR0913 - settings of one call, by keyword
    engine: UltraGist,
    repo_id: str,
    *,
    adapter_only: bool = False,
    base: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload what `save_pretrained` writes, and a model card, to a model repository, which is made if need be.

    Files of the same name are replaced, the card too; others stay.

    Args:
        engine: The model.
        repo_id: Such as `name/model`.
        adapter_only: Push the gist parameters alone, with name and fingerprint of their base.
        base: Hub id of the base, for adapters; default where it was loaded from.
        private: Whether a new repository is; default the account's or organisation's.
        token: That may write; default the one that was logged in with.
        revision: Branch to push to, which is made if need be; default `main`.

    Returns:
        Address of the repository.

    Raises:
        CheckpointError: If the base of an adapter is not on the hub, or the hub does not take the files.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        engine.save_pretrained(folder, adapter_only=adapter_only, base=base)
        contents = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        name = contents.get("base_model_name_or_path")
        if name is not None and Path(name).exists():
            raise CheckpointError(
                f"the adapter's base is the folder {name!r}, which others do not have. Give its hub id as base, or "
                "push everything with adapter_only=False."
            )
        (folder / "README.md").write_text(hub_card(repo_id, contents, engine.calibration), encoding="utf-8")
        api = HfApi(token=token)
        try:
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision)
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise CheckpointError(
                f"{repo_id!r} cannot be pushed to: {str(error).strip().splitlines()[0]} Name a repository as "
                "'name/model', and log in with `hf auth login` or give a token that may write."
            ) from error
    return str(address)


def hub_card(repo_id: str, contents: dict[str, Any], calibration: Calibration | None) -> str:
    """Write the card of a model that is pushed.

    Args:
        repo_id: Where it is pushed to.
        contents: Of its `ultragist_config.json`.
        calibration: What was measured of its memories; None if nothing was.

    Returns:
        Markdown behind a head of YAML.
    """
    base = contents.get("base_model_name_or_path")
    settings = {**contents["gist_config"], "source_bias": contents["source_bias"]}
    head: dict[str, Any] = {"library_name": "ultragist-rag", "pipeline_tag": "text-generation", "tags": _TAGS}
    if base is not None:
        head |= {"base_model": base, "base_model_relation": "adapter"}
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(head, sort_keys=True)}---\n\n# {repo_id.split('/')[-1]}\n",
            *_about(base, contents.get("base_revision")),
            f"\n```python\n{_USE.format(repo=repo_id)}\n```\n\n## Settings\n\n| setting | value |\n|---|---|",
            *(f"| `{name}` | `{json.dumps(value)}` |" for name, value in sorted(settings.items())),
            "\n## Documents compressed one by one\n",
            *_composing(calibration),
            "",
        ]
    )


def _about(base: str | None, revision: str | None) -> Iterator[str]:
    if base is None:
        yield "A language model with gist parameters: it condenses texts into memories and answers from these."
    else:
        at = f" at revision `{revision}`" if revision else ""
        yield (
            f"Gist parameters for [{base}](https://huggingface.co/{base}){at}, which is fetched along: with them it "
            "condenses texts into\nmemories and answers from these."
        )


def _composing(calibration: Calibration | None) -> Iterator[str]:
    if calibration is None:
        yield "Not measured: `ultragist-rag calibrate` does it."
        return
    yield f"Measured on {calibration.questions} questions by `{calibration.command}`, {calibration.date}.\n"
    yield "| ratio | verdict |\n|---|---|"
    for ratio in calibration.ratios:
        yield f"| {ratio} | {_VERDICTS[calibration.is_good(ratio)]} |"
