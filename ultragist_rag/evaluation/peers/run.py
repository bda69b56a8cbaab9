"""Answer samples by other compressors: a script for an environment of their own, which knows nothing of this package.

Is        a loop over request lines: compress the context by a peer's own code, read the tail, answer, write a line.
Flow      launch -> request lines -> [run] -> record lines -> launch. Imports torch, transformers and the peers alone.
Paper     SnapKV, arXiv 2404.14469; StreamingLLM, 2309.17453; key norms, 2406.11430; expected attention, 2510.00636: all
          by the library kvpress. LLMLingua, arXiv 2310.05736, by its authors' library.
Change    which presses there are, how a peer is called.
Not here  what is asked, and scores -> ../runner.py; finding the environment -> launch.py.
Holds     all peers read the same tokens with the same weights, and what does not reach the budget is left as it is.

Prompt    lead token, head, context, tail: tokenised as one text, as the full text is in this package, then cut at the
          seams by the place where each token ends. So with room for everything the ids are those of the full text. A
          token over a seam counts to the later part. Choices are tokenised by themselves; with a SentencePiece
          tokenizer they gain a space here that they do not have elsewhere.
Slots     What the context takes while the answer is decoded. Lead token and head stand in front of every method's
          context; kvpress is given their slots on top of the budget, and may spend them as it likes.
kvpress   The context is read under `with press(model)`, without the question, as the library's own pipeline does; tail
          and answer follow at their positions in the full text. All settings are the library's, but for SnapKV's window
          of 64 tokens, which becomes half of the slots where there are fewer than 128: it has to fit.
LLMLingua `compress_prompt` of the first version with its defaults, the model of the run as scorer, `target_token` the
          slots. By default it does not look at the question. What it gives is reported as it is, even above the budget.
Seconds   All from the start of the request: context compressed (and, by kvpress, read), first token there, all done.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils import logging

Record = dict[str, Any]

_COPIED = ("task", "id", "group", "method", "ratio", "budget")
_PEER_ERRORS = (AssertionError, IndexError, RuntimeError, ValueError)
"""What peers raise on samples that they cannot do."""
_PRESSES = {
    "snapkv": "SnapKVPress",
    "expected_attention": "ExpectedAttentionPress",
    "streaming_llm": "StreamingLLMPress",
    "knorm": "KnormPress",
}
_SNAPKV_WINDOW = 64


class SkippedError(Exception):
    """A sample that cannot be asked; says why."""


class Parts(NamedTuple):
    """The tokens of a prompt, cut at its seams."""

    front: list[int]
    context: list[int]
    tail: list[int]


@dataclass(slots=True)
class State:
    """What has been read so far."""

    cache: Any
    position: int = 0
    logits: Tensor | None = None


class Reader:
    """A stock model with its tokenizer."""

    def __init__(self, folder: str, dtype: str, device: str) -> None:
        self.folder = folder
        self.device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if not self.tokenizer.is_fast:
            raise SystemExit(f"the tokenizer of {folder} tells no offsets: a fast one (tokenizer.json) is needed.")
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), trust_remote_code=False)
        self.model: Any = loaded.to(self.device).eval()
        settings = (self.model.generation_config.eos_token_id, self.model.config.eos_token_id)
        ends: Any = next((one for one in (*settings, self.tokenizer.eos_token_id) if one is not None), [])
        self.ends = [ends] if isinstance(ends, int) else list(ends)

    @cached_property
    def compressor(self) -> Any:
        """LLMLingua with this model."""
        return make_compressor(self)

    def now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without anything in front; no text becomes a special token."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def split(self, request: Record, context: str) -> Parts:
        """Tokenise a prompt as one text, and cut it where head and context end."""
        head, tail = request["head"], request["tail"]
        coded = self.tokenizer(
            head + context + tail, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        first, second = len(head), len(head) + len(context)
        parts = Parts(self._lead() if request.get("lead", True) else [], [], [])
        for number, (_, end) in zip(coded["input_ids"], coded["offset_mapping"], strict=True):
            (parts.front if end <= first else parts.context if end <= second else parts.tail).append(number)
        return parts

    def _lead(self) -> list[int]:
        """What the tokenizer puts in front of a text, else how its chat template begins, else nothing."""
        bare, full = self.encode("a"), self.tokenizer("a")["input_ids"]
        if len(full) > len(bare) and full[0] != bare[0]:
            return [full[0]]
        if not self.tokenizer.chat_template:
            return []
        text = self.tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [ids[0]] if ids and ids[0] in self.tokenizer.added_tokens_decoder else []

    def feed(self, state: State, ids: Sequence[int], *, every: bool = False) -> Tensor:
        """Read ids at the next positions; give logits of the last or of every one, shape (tokens, vocabulary)."""
        places = torch.arange(state.position, state.position + len(ids), device=self.device)[None]
        read = self.model(
            input_ids=torch.tensor([ids], device=self.device),
            past_key_values=state.cache,
            position_ids=places,
            logits_to_keep=0 if every else 1,
        )
        state.position += len(ids)
        state.logits = read.logits[0, -1]
        logits: Tensor = read.logits[0]
        return logits


@torch.no_grad()
def read_request(reader: Reader, request: Record) -> Record:
    """Compress the context, read the tail, answer."""
    record: Record = {name: request.get(name) for name in _COPIED}
    try:
        return record | _answer(reader, request)
    except SkippedError as error:
        return {**record, "skipped": str(error)}


@contextmanager
def peers_code(method: str) -> Iterator[None]:
    """Skip a sample that a peer cannot do; errors of this script stop the run."""
    try:
        yield
    except _PEER_ERRORS as error:
        raise SkippedError(f"{method} failed: {type(error).__name__}: {error}"[:300]) from error


def _answer(reader: Reader, request: Record) -> Record:
    started = reader.now()
    method, slots = request["method"], int(request["slots"])
    raw = reader.split(request, request["context"])
    if slots < 1:
        raise SkippedError(f"{slots} slots hold nothing.")
    if slots >= len(raw.context):
        parts, press = raw, None
    elif method == "llmlingua":
        documents = request.get("documents") or [request["context"]]
        with peers_code(method):
            got = reader.compressor.compress_prompt(documents, target_token=slots)
        parts, press = reader.split(request, got["compressed_prompt"]), None
    else:
        parts, press = raw, method.removeprefix("kvpress:")
    choices = [] if request["kind"] == "generate" else [reader.encode(text) for text in request["choices"]]
    needed = sum(map(len, parts)) + max([len(ids) for ids in choices] or [request["n_new"]])
    if needed > (most := reader.model.config.max_position_embeddings):
        raise SkippedError(f"the prompt needs {needed} positions, but the model has {most}.")
    compressed = reader.now()
    state = prefill(reader, parts, slots, press)
    if press is not None:
        compressed = reader.now()
    n_kept = max((state.cache.get_seq_length(layer) for layer in range(len(state.cache.layers))), default=0)
    sizes = {"tokens": len(raw.context), "slots": max(0, n_kept - len(parts.front))}
    if parts.tail:
        reader.feed(state, parts.tail)
    if request["kind"] == "generate":
        answer, first = generate(reader, state, request)
    else:
        answer, first = judge(reader, state, request, choices), reader.now()
    seconds = {"compress": compressed - started, "first_token": first - started, "total": reader.now() - started}
    return {**sizes, **answer, "seconds": seconds}


def prefill(reader: Reader, parts: Parts, slots: int, press: str | None) -> State:
    """Read front and context, under a press if one is named."""
    state = State(DynamicCache())
    ids = parts.front + parts.context
    if press is not None:
        with peers_code(f"kvpress:{press}"), make_press(press, len(parts.front) + slots, len(ids))(reader.model):
            reader.feed(state, ids)
    elif ids:
        reader.feed(state, ids)
    return state


def make_press(name: str, n_kept: int, n_tokens: int) -> Any:
    """Make a press of kvpress that keeps so many of the slots: it rounds `n_tokens * (1 - ratio)` down."""
    import kvpress  # type: ignore[import-not-found, unused-ignore]

    ratio = 1 - (n_kept + 0.5) / n_tokens
    settings = {"window_size": min(_SNAPKV_WINDOW, max(1, n_kept // 2))} if name == "snapkv" else {}
    return getattr(kvpress, _PRESSES[name])(compression_ratio=ratio, **settings)


def make_compressor(reader: Reader) -> Any:
    """Make LLMLingua's compressor around a model that is loaded, with today's kind of cache."""
    import tiktoken
    from llmlingua import PromptCompressor  # type: ignore[import-not-found, unused-ignore]

    # The library counts GPT-3.5's tokens to estimate a price, by a table that would be downloaded. Nothing here reads
    # the estimate, so bytes are counted instead.
    name = tiktoken.encoding_name_for_model("gpt-3.5-turbo")
    each_byte = tiktoken.Encoding(
        name, pat_str=r"[\s\S]", mergeable_ranks={bytes([byte]): byte for byte in range(256)}, special_tokens={}
    )
    tiktoken.registry.ENCODINGS.setdefault(name, each_byte)

    class Pairs(DynamicCache):
        """A cache that can be asked for the keys and values of a layer, as the library does."""

        def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
            layer: Any = self.layers[number]
            return layer.keys, layer.values

    class Compressor(PromptCompressor):  # type: ignore[misc, unused-ignore]
        """The library's compressor, on the model of the run; its methods do the work."""

        def load_model(self, model_name: str, device_map: str = "cpu", model_config: Any = None) -> None:
            """Take the model that is loaded: same weights, no second copy, no remote code."""
            self.model, self.tokenizer, self.device = reader.model, reader.tokenizer, reader.device
            self.context_idxs: list[Any] = []
            self.max_position_embeddings = reader.model.config.max_position_embeddings

        def get_ppl(self, *args: Any, past_key_values: Any = None, return_kv: bool = False, **settings: Any) -> Any:
            """Hand the library's pairs of keys and values to the model as a cache, and give pairs back."""
            cache = None
            if past_key_values is not None:
                cache = Pairs()
                for layer, (keys, values) in enumerate(past_key_values):
                    cache.update(keys, values, layer)
            loss, cache = super().get_ppl(*args, past_key_values=cache, return_kv=True, **settings)
            return (loss, [(layer.keys, layer.values) for layer in cache.layers]) if return_kv else loss

    return Compressor(model_name=reader.folder, device_map=reader.device)


def generate(reader: Reader, state: State, request: Record) -> tuple[Record, float]:
    """Decode the likeliest tokens up to a stop text, an end token or the limit; tell when the first was there."""
    ids: list[int] = []
    text, first = "", 0.0
    while len(ids) < request["n_new"]:
        if state.logits is None:
            raise SkippedError("the prompt is empty.")
        ids.append(int(state.logits.argmax()))
        first = first or reader.now()
        if ids[-1] in reader.ends:
            break
        text = reader.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if any(stop in text for stop in request["stop"]):
            break
        if len(ids) < request["n_new"]:
            reader.feed(state, ids[-1:])
    ends = [place for stop in request["stop"] if (place := text.find(stop)) >= 0]
    return {"prediction": text[: min(ends, default=len(text))].strip()}, first


def judge(reader: Reader, state: State, request: Record, choices: Sequence[Sequence[int]]) -> Record:
    """Find the likeliest choice by mean log-likelihood; or, without its first token, how likely the one text is."""
    first = int(request["kind"] == "perplexity")
    if not choices or min(map(len, choices)) <= first:
        raise SkippedError("a text has too few tokens to have a probability.")
    means = []
    position, before = state.position, state.logits
    for ids in choices:
        logits = reader.feed(state, ids, every=True)[:-1]
        if not first:
            if before is None:
                raise SkippedError("the prompt is empty.")
            logits = torch.cat((before[None], logits))
        wanted = torch.tensor(ids[first:], device=logits.device)[:, None]
        means.append(float(logits.float().log_softmax(-1).gather(1, wanted).double().mean()))
        state.cache.crop(-len(ids))
        state.position = position
    if first:
        return {"prediction": "", "nll": -means[0], "n_tokens": len(choices[0]) - 1}
    return {"prediction": request["choices"][means.index(max(means))]}


def key_of(record: Record) -> tuple[Any, ...]:
    """Name a request and its record."""
    return tuple(record.get(name) for name in ("task", "id", "method", "ratio", "budget"))


def whole_lines(path: Path) -> Iterator[Record]:
    """Read records; cut off a last line that was not written whole."""
    path.touch()
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    os.truncate(path, end)
    yield from (json.loads(line) for line in data[:end].splitlines())


def main() -> None:
    """Read the arguments and go through the requests."""
    parser = argparse.ArgumentParser(description="Answer samples by other compressors.")
    parser.add_argument("--model", required=True, help="folder of a stock Hugging Face model")
    parser.add_argument("--samples", required=True, type=Path, help="requests, one JSON object a line")
    parser.add_argument("--output", required=True, type=Path, help="records; lines that are there are kept")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    given = parser.parse_args()
    logging.disable_progress_bar()
    requests = [json.loads(line) for line in given.samples.read_bytes().splitlines()]
    done = {key_of(record) for record in whole_lines(given.output)}
    wanted = [request for request in requests if key_of(request) not in done]
    if not wanted:
        return
    reader = Reader(given.model, given.dtype, given.device)
    for request in {one["method"]: one for one in sorted(wanted, key=lambda one: -one["slots"])}.values():
        read_request(reader, request)  # so that no first sample pays for imports
    with given.output.open("a", encoding="utf-8") as file:
        for number, request in enumerate(wanted, 1):
            file.write(json.dumps(read_request(reader, request), ensure_ascii=False) + "\n")
            file.flush()
            sys.stderr.write(f"\rpeers: {number}/{len(wanted)} {request['task']} {request['method']:<30}")
            sys.stderr.flush()
    sys.stderr.write("\n")


if __name__ == "__main__":
    main()
