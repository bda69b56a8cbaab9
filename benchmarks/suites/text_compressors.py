"""Suite `text_compressors`: making memories, against picking words by a token classifier, as LLMLingua-2 does.

Is        tokens per second of both on the same number of tokens, by length and batch.
Flow      suite, flops -> [text_compressors] -> suites.
Change    which classifiers are compared.
Holds     what LLMLingua-2 does in Python around its model, word by word, is not timed: that favours it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from benchmarks.flops import compress_flops
from benchmarks.record import Row, Setting
from benchmarks.suite import Bench, Plot, Suite

__all__ = ["SUITE"]

_RATIO = 8
_WINDOW = 512
"""Tokens that the classifiers read at once, the two that stand around them included."""


@dataclass(frozen=True, slots=True)
class _Classifier:
    """A token classifier that gives each token a probability of staying."""

    name: str
    family: str
    layers: int
    hidden: int
    mlp: int
    heads: int
    vocab: int

    def build(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Build it with random weights."""
        config = getattr(transformers, f"{self.family}Config")(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            num_attention_heads=self.heads,
            vocab_size=self.vocab,
            max_position_embeddings=_WINDOW + 2,
            type_vocab_size=2,
            num_labels=2,
        )
        config._attn_implementation = "sdpa"
        with torch.device(device):
            model = getattr(transformers, f"{self.family}ForTokenClassification")(config)
        return model.to(dtype).eval().requires_grad_(False)

    def flops_per_token(self, model: Any) -> int:
        """Count the work of a token in a full window, as for the other suites: matrices of layers, and attention."""
        named = model.base_model.encoder.named_parameters()
        weights = sum(value.numel() for _, value in named if value.dim() == 2)
        return 2 * int(weights) + 4 * self.hidden * self.layers * _WINDOW


_CLASSIFIERS = {
    one.name: one
    for one in (
        _Classifier("LLMLingua-2, XLM-RoBERTa large", "XLMRoberta", 24, 1024, 4096, 16, 250_002),
        _Classifier("LLMLingua-2, multilingual BERT base", "Bert", 12, 768, 3072, 12, 119_547),
        _Classifier("tiny", "Bert", 2, 64, 96, 4, 100),
    )
}
_LARGE, _SMALL, _TINY = _CLASSIFIERS


@dataclass(frozen=True, slots=True)
class _Cell:
    """A point of the grid."""

    classifier: str
    tokens: int
    batch: int

    @property
    def settings(self) -> dict[str, Setting]:
        return {"tokens": self.tokens, "batch": self.batch, "ratio": _RATIO}


_QUICK = [_Cell(_SMALL, 512, 1), _Cell(_SMALL, 512, 4)]
_CPU = [*_QUICK, _Cell(_SMALL, 2048, 2), _Cell(_LARGE, 512, 1), _Cell(_LARGE, 512, 4)]
_GPU = [_Cell(one, 512, batch) for one in (_LARGE, _SMALL) for batch in (1, 8, 32)]
_GPU += [_Cell(one, 8192, 2) for one in (_LARGE, _SMALL)]


def measure(bench: Bench) -> Iterator[Row]:
    """Measure every cell.

    Args:
        bench: What to measure with.

    Yields:
        Tokens per second of the engine and of the classifier.
    """
    cells = bench.grid(minimal=[_Cell(_TINY, 600, 1)], quick=_QUICK, full=_GPU if bench.on_gpu else _CPU)
    built: tuple[str, Any] = "", None
    for cell in bench.progress(cells):
        if built[0] != cell.classifier:
            built = cell.classifier, _CLASSIFIERS[cell.classifier].build(bench.device, bench.dtype)
        yield from _rows(bench, cell, built[1], len(cells))


def _rows(bench: Bench, cell: _Cell, model: Any, n_cells: int) -> Iterator[Row]:
    documents = list(bench.ids(cell.batch, cell.tokens)[:, None].unbind())
    words = _windows(cell, model.config.vocab_size, bench.device)
    runs: dict[str, Callable[[], object]] = {
        "compress": lambda: bench.engine.compress(documents, ratio=_RATIO),
        cell.classifier: lambda: kept(model, words, cell.batch * cell.tokens // _RATIO),
    }
    work = {
        "compress": compress_flops(bench.engine, cell.tokens, _RATIO) / cell.tokens,
        cell.classifier: _CLASSIFIERS[cell.classifier].flops_per_token(model),
    }
    pairs = bench.paired(runs, cells=n_cells)
    for name in runs:
        mine = name == "compress"
        yield Row(
            name=name,
            settings=cell.settings,
            unit="tokens/s",
            better="higher",
            value=pairs.seconds(name).map(lambda seconds: cell.batch * cell.tokens / seconds),
            baseline=cell.classifier if mine else "",
            ratio=pairs.speedup("compress", cell.classifier) if mine else None,
            floor="its own work at the measured matmul rate",
            floor_value=bench.machine.matmul_flops / work[name],
        )


def _windows(cell: _Cell, vocab: int, device: torch.device) -> list[torch.Tensor]:
    """The documents as the classifier reads them: batches of windows of one length, of one token more at both ends."""
    generator = torch.Generator().manual_seed(0)
    n_full, rest = divmod(cell.tokens, _WINDOW - 2)
    lengths = [(n_full, _WINDOW), (1, rest + 2)]
    shapes = [(cell.batch * n, length) for n, length in lengths if n and length > 2]
    return [torch.randint(5, vocab, shape, generator=generator).to(device) for shape in shapes]


def kept(model: Any, windows: list[torch.Tensor], n_kept: int) -> list[torch.Tensor]:
    """Pick the tokens that are kept: those that are most probably worth it.

    Args:
        model: The classifier.
        windows: Token ids.
        n_kept: How many tokens to keep, about: ties stay.

    Returns:
        The tokens of each batch of windows that stay, on the CPU, in order.
    """
    logits = [model(input_ids=ids).logits for ids in windows]
    worth = [one.float().softmax(-1)[..., 1] for one in logits]
    threshold = torch.cat([one.flatten() for one in worth]).topk(n_kept).values[-1]
    return [ids[one >= threshold].cpu() for ids, one in zip(windows, worth, strict=True)]


SUITE = Suite(
    name="text_compressors",
    title="Against compressors of text",
    order=5,
    about=(
        "What is timed is making a context smaller. LLMLingua-2 classifies each token of a text and keeps the most "
        "telling ones; its two published models are taken in shape, with random weights: XLM-RoBERTa large (0.56 "
        "billion parameters) and multilingual BERT base (0.18 billion), windows of 512 tokens, sdpa, softmax and a "
        f"threshold that keeps one token in {_RATIO}. Its work in Python, merging pieces into words and forcing some "
        "to stay, and tokenizing on either side are left out; both sides are taken to have as many tokens for a text. "
        "These are unlike models: an engine compresses with its own model, however large, a classifier is the same for "
        "every reader. So the bundled model, far smaller than both, is faster on its own account, and a model of eight "
        "billion parameters slower, which says little of the methods; the share of the floor says how well each is "
        "run. Nor is the result the same: what the classifier kept is still to be read by the model, at every "
        "question, while memories are already its keys and values."
    ),
    measure=measure,
    plots=(Plot(name="batch", x="batch", unit="tokens/s", where={"tokens": 512}),),
)
