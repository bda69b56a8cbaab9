"""Every task of lm-eval, by a model class that reads long prompts as gist memories.

Is        `UltraGistLM`: the three requests of lm-eval, answered by the code that answers everywhere else.
Flow      engine, streams -> [harness] -> weak.
Paper     arXiv 2412.17483, tables 1, 6, 7 and 9: few-shot prompts, condensed in full windows as one stream.
Change    what lm-eval is told, which of its settings are heard.
Not here  what of a prompt is condensed -> streams.py; lm-eval's tasks as lines of a run -> weak.py.
Holds     method `full`, and any prompt shorter than a window, gives what lm-eval's own `hf` model gives.

Importing this module imports lm-eval, and registers nothing: `register()` makes the name `ultragist` known to lm-eval
in this process. lm-eval asks no other packages for models, so its command is started from here:

    python -m ultragist_rag.evaluation.harness run --model ultragist --tasks TASK \
        --model_args pretrained=bundled,method=gist,ratio=4
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows
from torch import Tensor
from tqdm import tqdm

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.streams import Likelihood, StreamReader
from ultragist_rag.memory.decoding import Decoding, end_tokens
from ultragist_rag.memory.generate import answer
from ultragist_rag.memory.memory import GistMemory

__all__ = ["UltraGistLM", "register"]

Request = tuple[tuple[str, str], list[int], list[int]]
"""Context and continuation as texts, and as token ids."""

_NEW_TOKENS = 256
"""Tokens of an answer where a task does not say: lm-eval's own number."""


class UltraGistLM(TemplateLM):  # type: ignore[misc]
    """A causal LM for lm-eval that condenses prompts before it answers.

    Method `full` reads prompts as they are. Method `gist` condenses all tokens of a prompt but the last ones in full
    windows, as one stream; what does not fill a window stays as it is. Continuations are never condensed, except by
    `loglikelihood_rolling`, which streams a text: every window is read behind the gists of those before it. Prompts
    that need more positions than there are lose tokens on the left, by method `gist` whole windows.

    Attributes:
        engine: The model.
        tokenizer: Its tokenizer.
        method: `full` or `gist`.
        ratio: Raw tokens per gist; None for method `full`.
        sizes: For every prompt read, its cache slots behind compression and its tokens, cut ones not counted.

    Example:
        >>> from ultragist_rag.evaluation.harness import UltraGistLM
        >>> lm = UltraGistLM("bundled", method="gist", ratio=4)  # doctest: +SKIP
    """

    def __init__(  # noqa: PLR0913 - settings as lm-eval names them
        self,
        pretrained: str | Path | UltraGist = "bundled",
        *,
        method: str = "gist",
        ratio: int | None = None,
        keep: int = 1,
        max_length: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Load the model.

        Args:
            pretrained: `bundled`, a folder, a hub id, or an engine.
            method: `full` or `gist`.
            ratio: Raw tokens per gist; None for the ratio of the model's config.
            keep: Tokens at the end of a prompt that always stay raw, the question for example.
            max_length: Positions that a prompt may use, slots and new tokens included; None for all of the model.
            dtype: Number format, for transformers.
            device: Where to put the model; a GPU that is not there means the CPU, as for `hf`.
            batch_size: Prompts that are read side by side; `auto` means one.
            max_batch_size: Ignored; lm-eval passes it on.
            seed: Of answers that tasks ask to be drawn.
            options: For `UltraGist.from_pretrained`, such as revision and attn_implementation.

        Raises:
            InputError: If a setting is out of range, or the model has no tokenizer.
        """
        super().__init__()
        del max_batch_size
        if method not in ("full", "gist"):
            raise InputError(f"method is {method!r}, but lm-eval's tasks are read by 'full' or 'gist'.")
        given = {"ratio": ratio, "keep": keep, "max_length": max_length}
        for name, value in given.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name} is {value!r}, but must be a whole number of at least 1.")
        if dtype is not None:
            options["dtype"] = dtype
        self.engine = (
            pretrained if isinstance(pretrained, UltraGist) else UltraGist.from_pretrained(pretrained, **options)
        )
        if self.engine.tokenizer is None:
            raise InputError("the model has no tokenizer, but lm-eval gives texts: load it from a folder that has one.")
        if device is not None and (torch.cuda.is_available() or not device.startswith("cuda")):
            self.engine.model.to(device)
        self._device = self.engine.attachment.device
        self.tokenizer = self.engine.tokenizer
        self.method = method
        self.ratio = None if method == "full" else ratio or self.engine.config.ratio
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else 1
        self.sizes: dict[str, tuple[int, int]] = {}
        self._seed, self._max_length = seed, max_length or self.engine.max_positions
        self._reader = StreamReader(self.engine, ratio=self.ratio, keep=keep, max_positions=self._max_length)

    # --- what lm-eval asks about the model ----------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands in front of a text without a context."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def max_length(self) -> int:
        """Positions that a prompt may use, slots and new tokens included."""
        return self._max_length

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for caches of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Turn a text into token ids as lm-eval's `hf` does: what looks like a special token becomes one."""
        del kwargs
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        ids: list[int] = self.tokenizer(string, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write turns by the model's own template."""
        settings = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return str(self.tokenizer.apply_chat_template(chat_history, tokenize=False, **settings))

    def get_model_info(self) -> dict[str, Any]:
        """Say what was measured, for lm-eval's results."""
        return {
            "method": self.method,
            "ratio": self.ratio,
            "window": self.engine.config.window,
            "model_fingerprint": self.engine.fingerprint,
        }

    # --- requests -----------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[Likelihood]:
        """Score continuations behind contexts, `batch_size` at a time."""
        del kwargs
        rows: list[Likelihood] = []
        empty = [texts for texts, _, continuation in requests if not continuation]
        if empty:
            raise InputError(f"the continuation of {empty[0]!r:.200} has no token of its own: it cannot be scored.")
        with tqdm(total=len(requests), desc="log-likelihoods", disable=disable_tqdm) as bar:
            for part in _parts(requests, self.batch_size):
                scored = self._reader.score([(context, continuation) for _, context, continuation in part])
                for (texts, _, _), (row, read) in zip(part, scored, strict=True):
                    self.sizes[texts[0]] = (read.slots, read.tokens)
                    self.cache_hook.add_partial("loglikelihood", texts, row)
                    rows.append(row)
                bar.update(len(part))
        return rows

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts. A text that is too long goes on in new streams, each token scored once.

        Args:
            requests: Requests of one text each.
            disable_tqdm: Show no progress.

        Returns:
            The sum of the log-likelihoods of all tokens of each text, in nats.
        """
        sums: list[float] = []
        for request in tqdm(requests, desc="rolling log-likelihoods", disable=disable_tqdm):
            (text,) = request.args
            ids = self.tok_encode(text)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self._reader.longest_stream, 1)
            total = sum(self._reader.score_stream([*read, wanted[-1]], len(wanted)) for read, wanted in windows)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            sums.append(total)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer prompts. An answer may take half of the positions at most.

        Args:
            requests: Requests of a context and settings; one that comes again is drawn anew, if it is drawn at all.
            disable_tqdm: Show no progress.

        Returns:
            The answers, without the texts that ended them.
        """
        seen: Counter[tuple[str, str]] = Counter()
        work = []
        for request in requests:
            settings = json.dumps(request.args[1], sort_keys=True, default=str)
            key = request.args[0], settings
            work.append(((settings, seen[key]), request.args))
            seen[key] += 1
        texts: list[str] = []
        with tqdm(total=len(work), desc="answers", disable=disable_tqdm) as bar:
            for (_, again), same in groupby(work, key=lambda one: one[0]):
                for part in _parts([args for _, args in same], self.batch_size):
                    decoding = self._decoding(part[0][1], again)
                    room = self.max_length - decoding.max_new_tokens
                    prompts = [self._read(context, room) for context, _ in part]
                    for (one,), args in zip(answer(self.engine, prompts, decoding), part, strict=True):
                        self.cache_hook.add_partial("generate_until", args, one.text)
                        texts.append(one.text)
                    bar.update(len(part))
        return texts

    def _read(self, context: str, room: int) -> list[Tensor | GistMemory]:
        read = self._reader.read(self.tok_encode(context), room)
        self.sizes[context] = (read.slots, read.tokens)
        return read.pieces

    def _decoding(self, given: Mapping[str, Any], again: int) -> Decoding:
        settings: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), _NEW_TOKENS))
        stop = [text for text in settings.pop("until") if text]
        n_new = min(settings.pop("max_gen_toks"), self.max_length // 2)
        if not settings["do_sample"]:
            settings = {name: value for name, value in settings.items() if name not in _DRAWING}
        # Special tokens are no part of a text: those among the stop texts end an answer as tokens.
        special = {text: self.tokenizer.convert_tokens_to_ids(text) for text in self.tokenizer.all_special_tokens}
        ends = [*end_tokens(self.engine.model, self.tokenizer, Decoding()), self.eot_token_id]
        ends += [special[text] for text in stop if text in special]
        settings |= {"stop": [text for text in stop if text not in special], "eos_token_id": list(dict.fromkeys(ends))}
        return Decoding.of({"source_bias": 0.0, **settings, "max_new_tokens": n_new, "seed": self._seed + again})


_DRAWING = ("temperature", "top_p", "top_k", "min_p")


def _parts(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def register() -> None:
    """Make the model class known to lm-eval in this process, by the name `ultragist`; again does no harm."""
    register_model("ultragist")(UltraGistLM)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()
