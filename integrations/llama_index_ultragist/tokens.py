"""Count what a prompt takes: tokens of its text, slots of its memories.

Is        `slot_tokenizer`: a callable in the place of a tokenizer, for LlamaIndex's packing and memory limits.
Flow      UltraGistLLM -> [tokens] -> Settings.tokenizer, PromptHelper, Memory. Imports the front door only.
Change    what a marker counts.
Not here  packing itself -> llama_index.core.indices.prompt_helper.
Holds     a marker of the store counts the slots of its memory; all else counts the model's own tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from ultragist_rag.errors import StoreError
from ultragist_rag.store.refs import Ref, split

if TYPE_CHECKING:
    from llama_index_ultragist.llm import UltraGistLLM

__all__ = ["slot_tokenizer"]

_REMEMBERED = 4096


def slot_tokenizer(llm: UltraGistLLM) -> Callable[[str], list[int]]:
    """Make a tokenizer that counts a marker as the slots of its memory.

    With LlamaIndex's own one, a marker counts a few tokens whatever its memory takes, and prompts overflow.

    Args:
        llm: The model that reads the prompts; it is loaded when the first text is counted.

    Returns:
        A callable that returns a list as long as the room that its text takes in a prompt; its numbers mean nothing.
        For `Settings.tokenizer`, `PromptHelper(tokenizer=...)` and `Memory.from_defaults(tokenizer_fn=...)`.
    """

    @lru_cache(maxsize=_REMEMBERED)
    def n_slots(marker: str) -> int:
        if llm.store is None:
            raise StoreError("there is no store")
        return llm.store.get(marker, llm._get_engine()).slots

    def count(part: str | Ref) -> list[int]:
        if isinstance(part, str):
            return llm._reader().token_ids(part)
        try:
            return [0] * n_slots(part.name)
        except StoreError:  # not a marker of this store: the model will refuse it, or read it as text
            return llm._reader().token_ids(part.marker)

    return lambda text: [number for part in split(text) for number in count(part)]
