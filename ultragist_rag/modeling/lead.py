"""Find the token that stands in front of every text.

Is        the rule of `GistConfig.lead_token`: what the tokenizer prepends, else how its chat template begins.
Flow      config -> [modeling] -> engine.
Change    how the lead token is found.
Holds     a tokenizer that prepends nothing and has no chat template gives None.
"""

from __future__ import annotations

from typing import Any, Literal

__all__ = ["find_lead_token", "prepended_token"]


def find_lead_token(setting: Literal["auto", "none"] | int, tokenizer: Any) -> int | None:
    """Resolve the setting.

    Args:
        setting: `auto`, `none` or a token id.
        tokenizer: A Hugging Face tokenizer, or None.

    Returns:
        A token id; None for no lead token.
    """
    if isinstance(setting, int):
        return setting
    if setting == "none" or tokenizer is None:
        return None
    token = prepended_token(tokenizer)
    return _first_of_template(tokenizer) if token is None else token


def prepended_token(tokenizer: Any) -> int | None:
    """Return the token that the tokenizer puts in front of a text by itself; None if it puts none."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    return int(full[0]) if len(full) > len(bare) and full[0] != bare[0] else None


def _first_of_template(tokenizer: Any) -> int | None:
    if not getattr(tokenizer, "chat_template", None):
        return None
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return int(ids[0]) if ids and ids[0] in tokenizer.added_tokens_decoder else None
