"""UltraGist: the front door. A causal LM that condenses texts into memories and answers from them.

Is        one class that ties model, tokenizer and settings together and holds the lock of the model while it runs.
Flow      config -> layout -> modeling -> memory -> store -> [engine] -> integrations.
Paper     UltraGist, arXiv 2405.16635; Activation Beacon, arXiv 2401.03462, for checkpoints of that family.
Change    what the front door offers.
Not here  the loops -> memory/compress.py, forward.py, generate.py; formats -> modeling/loading.py, saving.py.
Holds     asking and compressing change neither model nor memories.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import torch
from torch import Tensor, nn

from ultragist_rag.config import GistConfig
from ultragist_rag.memory.assembled import Assembled
from ultragist_rag.memory.compress import Ratios, Tail
from ultragist_rag.memory.forward import ForwardOutput, forward_ids
from ultragist_rag.memory.generate import ask, generate
from ultragist_rag.memory.ingest import CompressSettings, check_memory, compress_texts
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.stream import stream
from ultragist_rag.memory.verbatim import VerbatimPolicy
from ultragist_rag.modeling.attach import Attachment, attach
from ultragist_rag.modeling.calibration import Calibration
from ultragist_rag.modeling.checkpoint import authors_name
from ultragist_rag.modeling.fingerprint import active_adapters, model_fingerprint, tokenizer_fingerprint
from ultragist_rag.modeling.lead import find_lead_token
from ultragist_rag.modeling.loading import load, load_calibration
from ultragist_rag.modeling.saving import save
from ultragist_rag.publishing import push

if TYPE_CHECKING:
    from ultragist_rag.batching import BatchQueue
    from ultragist_rag.session import GistSession

__all__ = ["ForwardOutput", "UltraGist"]


class UltraGist:
    """A causal LM with gist parameters.

    Make one with `from_pretrained` or `attach`. Threads may share it: a lock lets one forward run at a time.

    Attributes:
        attachment: Model, gist modules, lock and limits.
        tokenizer: The tokenizer; None works for calls with token ids.
        config: The settings.
        trained_composed: Whether it was trained on independently compressed documents, as far as is known.
        source_bias: Holds answers to the words of their prompts where a call names none, see `Decoding`.
        assembled: Rotated memories of recent prompts; `engine.assembled.max_bytes` allows them some memory.

    Example:
        >>> from ultragist_rag.testing import tiny_engine
        >>> engine = tiny_engine(window=8, ratio=4)
        >>> memory = engine.compress(torch.arange(3, 23)[None])
        >>> memory.n_gists, memory.keys[0].shape
        (5, torch.Size([1, 2, 5, 16]))
        >>> engine.generate([memory, torch.tensor([[7, 8]])], max_new_tokens=3).shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        attachment: Attachment,
        tokenizer: Any = None,
        *,
        family: str = "ultragist",
        trained_composed: bool = True,
        source: tuple[str, str | None] | None = None,
        source_bias: float = 0.0,
    ) -> None:
        """Wrap an attachment; use `from_pretrained` or `attach`."""
        self.attachment = attachment
        self.tokenizer = tokenizer
        self.config = attachment.config
        self.family = family
        self.trained_composed = trained_composed
        self.source_bias = source_bias
        self.assembled = Assembled()
        self._source = source
        self._fingerprint: tuple[Any, str] = (None, "")
        self._calibration: Calibration | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        config: GistConfig | None = None,
        calibration: str | Path | Calibration | Literal[False] | None = None,
        **options: Any,
    ) -> UltraGist:
        """Load a model with its gist parameters.

        Four kinds are told apart: the authors' checkpoints (both families; no remote code is run), our merged folders,
        our adapter-only folders (their base is fetched and compared), and plain bases, with untrained gist parameters.

        Args:
            name: A folder, a hub id, or `bundled` for the model that comes with the package.
            config: Settings, instead of those that come with the checkpoint.
            calibration: File of a calibration, instead of one beside the weights; False for none.
            options: Passed on to transformers, such as revision, token, dtype, device_map and quantization_config.

        Raises:
            CheckpointError: If files are missing, damaged or do not fit together.
            UnsupportedModelError: If memories of this kind of model would be wrong.
            ConfigError: If `config` contradicts the gist weights.
        """
        if str(name) == "bundled":
            name = str(files("ultragist_rag") / "bundled")
            if not torch.cuda.is_available():
                options.setdefault("dtype", torch.float32)  # few CPUs are quick in the format of the files
        measured = load_calibration(str(name), calibration, options)
        found = load(str(name), config, options)
        engine = cls(**{one.name: getattr(found, one.name) for one in fields(found)})
        engine.calibration = measured
        return engine

    @classmethod
    def attach(cls, model: Any, tokenizer: Any = None, config: GistConfig | None = None) -> UltraGist:
        """Add gist parameters, copies of the model's own, to a model that is loaded already.

        Args:
            model: A Hugging Face causal LM.
            tokenizer: Its tokenizer, or None.
            config: The settings; None for the defaults.

        Returns:
            The engine; closing it leaves the model as it was.

        Raises:
            UnsupportedModelError: If memories of this kind of model would be wrong.
            InputError: If the model has gist parameters already.
        """
        name = getattr(model.config, "_name_or_path", "")
        return cls(attach(model, config or GistConfig()), tokenizer, source=(name, None) if name else None)

    @property
    def model(self) -> Any:
        """The Hugging Face model."""
        return self.attachment.model

    @property
    def max_positions(self) -> int:
        """Positions that a prompt may use, memory slots and new tokens included."""
        return self.attachment.n_positions

    @property
    def fingerprint(self) -> str:
        """Name of model and gist parameters; memories carry it. It follows training."""
        state = (tuple((id(one), one._version) for one in self.model.parameters()), str(active_adapters(self.model)))
        if self._fingerprint[0] != state:
            self._fingerprint = (state, model_fingerprint(self.model))
        return self._fingerprint[1]

    @property
    def calibration(self) -> Calibration | None:
        """What composing costs with these weights; None if that was not measured, or if they were trained since."""
        known = self._calibration
        return known if known is not None and known.mismatch(self) is None else None

    @calibration.setter
    def calibration(self, measured: Calibration | None) -> None:
        wrong = measured.mismatch(self) if measured is not None else None
        if wrong:
            warnings.warn(f"the calibration is left out: {wrong}. Run `ultragist-rag calibrate` again.", stacklevel=3)
        self._calibration = None if wrong else measured

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """Name of the tokenizer; empty if there is none."""
        return tokenizer_fingerprint(self.tokenizer)

    @cached_property
    def lead_token(self) -> int | None:
        """Token in front of every independent document, and once at the head of a prompt; None if there is none."""
        return find_lead_token(self.config.lead_token, self.tokenizer)

    def gist_parameters(self) -> dict[str, nn.Parameter]:
        """Return the gist parameters by the names that the authors' checkpoints give them."""
        return {authors_name(name, self.family): value for name, value in self.attachment.parameters().items()}

    @overload
    def compress(  # type: ignore[overload-overlap]
        self, texts: str | Tensor, **settings: Unpack[CompressSettings]
    ) -> GistMemory: ...

    @overload
    def compress(self, texts: Sequence[str | Tensor], **settings: Unpack[CompressSettings]) -> list[GistMemory]: ...

    def compress(  # noqa: PLR0913 - settings of one call, by keyword
        self,
        texts: str | Tensor | Sequence[str | Tensor],
        *,
        ratio: Ratios | None = None,
        memory: GistMemory | None = None,
        joint: bool = False,
        tail: Tail = "flush",
        verbatim: VerbatimPolicy | None = None,
        slots: int | None = None,
    ) -> GistMemory | list[GistMemory]:
        """Condense texts into gist memories, window by window, all texts in ragged batches.

        Every window runs through the model once, followed (or interleaved) by its gist tokens. The pre-RoPE keys and
        values of the gist tokens enter the memory; those of the raw tokens are dropped, but for the tokens that the
        policy `verbatim` chooses: these stay as slots of their own, before the gist that covers them. A last window
        that is not full is flushed: its gists are provisional until `GistMemory.seal`, and going on makes them anew,
        so that compressing a and then b gives what compressing a + b gives.

        Texts are untrusted: they never become special tokens. The lead token stands in front of each; ids may have it.

        Paper: UltraGist, arXiv 2405.16635, section 3; flushing and independent documents are ours.

        Args:
            texts: One text or token sequence of shape (1, tokens), or several; each becomes its own memory.
            ratio: Raw tokens per gist token (x-fold): one for all, or one per text, or for each text a list with one
                per window; default `GistConfig.ratio`.
            memory: Memory to go on from (one text only); it is not changed.
            joint: Encode as one stream, the way the authors do: the first token inside, the sink kept.
            tail: `flush` condenses the open window too; `raw` keeps its tokens, as the authors do.
            verbatim: Policy of the tokens that stay beside the gists: `codes`, `regex`, `surprisal`, `both`, or a
                function; see docs/verbatim.md.
            slots: Slots that each memory may have, verbatim ones included. The lowest ratio that fits is taken: from
                `ratio` on (one per text), by default from the lowest one that the config names.

        Returns:
            One memory per text, in order; not in a list if one text was given. Keys and values of each layer have shape
            (1, kv_heads, slots, head_dim): at window 1024 and ratio 8, 10_000 tokens take 1_250 slots.

        Raises:
            InputError: If a text is empty, lacks a tokenizer or does not fit into `slots`, or an argument does not fit.
            MemoryMismatchError: If `memory` was made with another model, tokenizer, config or verbatim policy.
            ContextOverflowError: If window and memory exceed the positions of the model.

        Example:
            >>> from ultragist_rag.testing import tiny_engine
            >>> engine = tiny_engine(window=8, ratio=4)
            >>> [m.slots for m in engine.compress([torch.arange(3, 13)[None], torch.arange(5)[None]], ratio=[2, 4])]
            [5, 2]
        """
        documents: list[str | Tensor] = [texts] if isinstance(texts, str | Tensor) else list(texts)
        memories = compress_texts(
            self, documents, ratio=ratio, memory=memory, joint=joint, tail=tail, verbatim=verbatim, slots=slots
        )
        return memories[0] if isinstance(texts, str | Tensor) else memories

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        memory: GistMemory | None = None,
        training: bool = False,
        seed: int | None = None,
    ) -> ForwardOutput:
        """Let a sequence grow by some tokens, as the authors' models do: full windows are condensed on the way.

        Follows UltraGist (section 3) and Activation Beacon to rounding, but for what docs/fidelity.md lists.

        Args:
            input_ids: New tokens, shape (1, tokens).
            labels: Tokens to predict, shape as `input_ids`, not shifted; -100 counts for nothing.
            memory: Memory of the tokens so far; it is not changed.
            training: Train as the authors do: the last window stays raw, the first has no loss, gradients are recorded.
            seed: For random ratio policies.

        Returns:
            Logits of all new tokens, shape (1, tokens, vocab), the memory behind them, and the loss if labels came.

        Raises:
            InputError: If shapes do not fit, or ratios are random and there is no seed.
            MemoryMismatchError: If `memory` cannot go on with this model.
            ContextOverflowError: If memory and window exceed the positions of the model.
        """
        check_memory(self, memory)
        settings: dict[str, Any] = {"labels": labels, "memory": memory, "training": training, "seed": seed}
        with self.attachment.lock, torch.set_grad_enabled(training and torch.is_grad_enabled()):
            out = forward_ids(self.attachment, input_ids, **settings)
        if training:
            return out
        model, tokenizer = self.fingerprint, self.tokenizer_fingerprint
        return replace(out, memory=replace(out.memory, fingerprint=model, tokenizer_fingerprint=tokenizer))

    def generate(self, pieces: Any, **settings: Any) -> Any:
        """Answer one prompt (texts, ids and memories in a list) or several; see `memory.generate.generate`."""
        return generate(self, pieces, **settings)

    def answer(self, pieces: Any, **settings: Any) -> Any:
        """Answer as `generate` does, but in `Answer`s: text, ids, counts, `sources`; see `memory.generate.ask`."""
        return ask(self, pieces, **settings)

    def stream(self, pieces: Any, **settings: Any) -> Iterator[Any]:
        """Answer a prompt bit by bit, until it is closed; see `memory.stream.stream`."""
        return stream(self, pieces, **settings)

    def session(self, slots: int | None = None, recent: int | None = None, **settings: Any) -> GistSession:
        """Begin a conversation that never takes more than a number of slots; see `GistSession.create`."""
        from ultragist_rag.session import GistSession

        return GistSession.create(self, slots=slots, recent=recent, **settings)

    def batching(self, **settings: Any) -> BatchQueue:
        """Open a queue that decodes requests of many threads side by side; see `BatchQueue`."""
        from ultragist_rag.batching import BatchQueue

        return BatchQueue(self, **settings)

    def save_pretrained(
        self, path: str | Path, *, adapter_only: bool = False, base: str | None = None, revision: str | None = None
    ) -> None:
        """Write model and gist parameters to a folder, at once or not at all.

        Args:
            path: The folder; one that was written by this method before is replaced.
            adapter_only: Write the gist parameters alone, with name and fingerprint of their base.
            base: Name or folder of the base, for adapters; default where it was loaded from.
            revision: Of the base.

        Raises:
            CheckpointError: If the folder holds other files, or an adapter's base is not known.
        """
        source = ((base, revision) if base else self._source or ("", None)) if adapter_only else None
        notes = {name: getattr(self, name) for name in ("family", "trained_composed", "source_bias")}
        save(self.attachment, self.tokenizer, Path(path), notes=notes, source=source, calibration=self.calibration)

    def push_to_hub(self, repo_id: str, **settings: Any) -> str:
        """Publish what `save_pretrained` writes, with a model card; see `publishing.push`."""
        return push(self, repo_id, **settings)

    def close(self) -> None:
        """Take the gist modules off the model; the engine cannot be used afterwards."""
        with self.attachment.lock:
            self.attachment.detach()

    def __enter__(self) -> UltraGist:
        """Give the engine itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()
