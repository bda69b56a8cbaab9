"""Give a stock Hugging Face decoder its gist projections, by sub-modules and hooks, and take them away again.

Is        `attach(model, config)`: modules beside q/k/v/o_proj, one gist embedding, hooks that use them at gist rows.
Flow      config, types -> [modeling] -> memory -> engine.
Paper     UltraGist, arXiv 2405.16635, section 3.1; no forked model code is needed for it.
Change    which modules are hooked.
Not here  proof that it works on this model -> selftest.py; one forward -> encode.py; the modules -> projections.py.
Holds     without gist rows the model computes bit for bit what it computed before.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import InputError, UnsupportedModelError
from ultragist_rag.modeling.lock import ModelLock
from ultragist_rag.modeling.projections import gist_rows, make_projection
from ultragist_rag.modeling.rope import decoder_of
from ultragist_rag.modeling.window import Window
from ultragist_rag.types import BatchIds, Hidden

__all__ = ["PREFIX", "Attachment", "attach"]

PREFIX = "ultragist"
_LETTERS = "qkvo"
_locks: weakref.WeakKeyDictionary[nn.Module, ModelLock] = weakref.WeakKeyDictionary()


class _OtherAttention:
    """Another attention function until it is removed: set by each layer, so that one that runs again has it, too."""

    def __init__(self, config: Any, name: str) -> None:
        self._config, self._chosen = config, config._attn_implementation
        config._attn_implementation = name

    def remove(self) -> None:
        self._config._attn_implementation = self._chosen


class _LayerHooks:
    """The hooks of one attention layer.

    Only the layer itself is hooked. Its projections compute otherwise from when it begins to when it ends, and only if
    there is a window, so that any other forward, one token of an answer for example, pays next to nothing.
    """

    def __init__(self, attention: Any, layer: int) -> None:
        self.layer = layer
        self.attention = attention
        self.expected = {letter: getattr(attention, f"{letter}_proj") for letter in _LETTERS}
        self._changed: list[Any] = []
        self.handles = [
            attention.register_forward_pre_hook(self.open, with_kwargs=True),
            attention.register_forward_hook(self.close, always_call=True),
        ]

    def open(self, _attention: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Take the window out of the keywords; stand in for the cache if it has a past."""
        self.close()  # after an interrupt torch calls no hook that would have
        if "gist_window" not in kwargs:
            return None
        window = kwargs.pop("gist_window")
        return (args, kwargs) if window is None else self._begin(args, kwargs, window)

    def close(self, *_: Any) -> None:
        """Let projections compute as before, also after an error."""
        if self._changed:
            self._put_back()

    # What compiled code reads from a module is not what it wrote there.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _begin(self, args: Any, kwargs: dict[str, Any], window: Window) -> tuple[Any, dict[str, Any]]:
        attention = self.attention
        for letter, module in self.expected.items():
            if getattr(attention, f"{letter}_proj") is not module:
                raise UnsupportedModelError(
                    f"{letter}_proj of layer {self.layer} was replaced after attach (by PEFT, perhaps), so gist rows "
                    "would be projected wrongly. Detach, then attach to the model as it is now."
                )
            self._change(module, partial(self._projected, letter, window))
        if hasattr(attention, "k_norm"):
            self._change(attention.k_norm, lambda _, output: self._captured(window, output))
        if window.past is not None:
            kwargs["past_key_values"] = window
        if window.attention is not None:
            name, keywords = window.attention
            self._changed.append(_OtherAttention(attention.config, name))
            kwargs.update(keywords)
        return args, kwargs

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _put_back(self) -> None:
        while self._changed:
            self._changed.pop().remove()

    def _change(self, module: Any, change: Callable[[tuple[Any, ...], Tensor], Tensor]) -> None:
        """Change what a module gives, behind all hooks that others have put there."""
        self._changed.append(module.register_forward_hook(lambda _, args, output: change(args, output)))

    def _projected(self, letter: str, window: Window, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Project gist rows by the gist's own projection, and capture keys and values."""
        mine = getattr(self.attention, f"{PREFIX}_{letter}_proj", None)
        if mine is not None and window.rows is not None:
            output = gist_rows(mine, args[0], output, window.rows.to(output.device))
        if letter in "kv":
            rows = output.view(*output.shape[:2], -1, self.attention.head_dim)
            window.capture(window.keys if letter == "k" else window.values, self.layer, rows)
        return output

    def _captured(self, window: Window, output: Tensor) -> Tensor:
        """Capture keys behind their norm, which is what gets rotated."""
        window.capture(window.keys, self.layer, output)
        return output


class Attachment:
    """A model with its gist modules, and the way to take them off again.

    Attributes:
        model: The causal LM.
        decoder: The decoder inside it.
        config: Settings of the gist modules.
        lock: Re-entrant lock of the model; hold it around every forward and generate.
        n_layers: Decoder layers.
        n_positions: Positions that prompts may use; a sliding attention window caps them.
    """

    def __init__(self, model: Any, config: GistConfig) -> None:
        """Add modules and hooks; use `attach`, which also proves that they fit."""
        self.model = model
        self.decoder = decoder_of(model)
        self.config = config
        self.lock = _locks.setdefault(model, ModelLock())
        self.layers = [layer.self_attn for layer in self.decoder.layers]
        self.n_layers = len(self.layers)
        self.n_positions = _n_positions(model.config)
        self._embedding_window: Window | None = None
        self._add_modules()
        self._hooks = [_LayerHooks(attention, index) for index, attention in enumerate(self.layers)]
        self._handles: list[Any] = [
            self.decoder.register_forward_pre_hook(self._open, with_kwargs=True),
            self.decoder.register_forward_hook(self._close, always_call=True),
            self.decoder.embed_tokens.register_forward_hook(self._embed),
        ]

    @cached_property
    def runs_kept(self) -> bool:
        """Whether `encode_kept` equals `encode` on this model, found out when it is first asked."""
        from ultragist_rag.modeling.selftest import can_run_kept

        return can_run_kept(self)

    @property
    def device(self) -> torch.device:
        """Where token ids belong."""
        device: torch.device = self.decoder.embed_tokens.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of hidden states."""
        dtype: torch.dtype = self.decoder.embed_tokens.weight.dtype
        return dtype

    @property
    def n_kv_heads(self) -> int:
        """Heads of keys and values."""
        return int(self.layers[0].k_proj.out_features // self.layers[0].head_dim)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return int(self.layers[0].head_dim)

    @property
    def memory_shape(self) -> tuple[int, int, int]:
        """Layers, heads and head width of the tensors of a memory; see `GistMemory.embeddings` for recurrent ones."""
        if self.config.memory == "recurrent":
            return 1, 1, int(self.decoder.embed_tokens.embedding_dim) // 2
        return self.n_layers, self.n_kv_heads, self.head_dim

    def embed(self, ids: BatchIds, gist_rows: Tensor | None) -> Hidden:
        """Embed rows.

        Args:
            ids: Token ids; what stands in gist rows does not matter.
            gist_rows: Places of gists in the flattened (batch * tokens) rows; None for none.

        Returns:
            Input embeddings.
        """
        return self._with_gists(self.decoder.embed_tokens(ids), gist_rows)

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield every gist module with its path inside the causal LM."""
        yield f"model.{PREFIX}_embed_tokens", getattr(self.decoder, f"{PREFIX}_embed_tokens")
        for index, attention in enumerate(self.layers):
            for letter in self.config.projections:
                name = f"{PREFIX}_{letter}_proj"
                yield f"model.layers.{index}.self_attn.{name}", getattr(attention, name)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the gist parameters by name: `model.layers.0.self_attn.ultragist_q_proj.weight` and so on."""
        return {f"{path}.{name}": value for path, module in self.modules() for name, value in module.named_parameters()}

    def settle(self) -> None:
        """Let all modules compute as without a window. Hooks see to it, but torch calls none after an interrupt."""
        self._embedding_window = None
        for hooks in self._hooks:
            hooks.close()

    def detach(self) -> None:
        """Remove hooks and modules; the model is as it was. Doing so twice is harmless."""
        self.settle()
        for handle in [*self._handles, *(handle for hooks in self._hooks for handle in hooks.handles)]:
            handle.remove()
        if self._handles:
            delattr(self.decoder, f"{PREFIX}_embed_tokens")
            for attention in self.layers:
                for letter in self.config.projections:
                    delattr(attention, f"{PREFIX}_{letter}_proj")
        self._handles, self._hooks = [], []

    def __enter__(self) -> Attachment:
        """Give the attachment itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach."""
        self.detach()

    def _add_modules(self) -> None:
        embed = self.decoder.embed_tokens
        gist = nn.Embedding(1, embed.embedding_dim, device=embed.weight.device, dtype=embed.weight.dtype)
        eos = self.model.config.eos_token_id
        eos = eos[0] if isinstance(eos, list) else eos
        with torch.no_grad():
            gist.weight.copy_(embed.weight[eos or 0 : (eos or 0) + 1])
        made: list[tuple[Any, str, nn.Module]] = [(self.decoder, f"{PREFIX}_embed_tokens", gist)]
        for attention in self.layers:
            for letter in self.config.projections:
                projection = make_projection(getattr(attention, f"{letter}_proj"), self.config.rank)
                made.append((attention, f"{PREFIX}_{letter}_proj", projection))
        for parent, name, module in made:
            parent.add_module(name, module.train(parent.training))

    def _open(self, _module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs.pop("gist_mask", None)
        if mask is not None:
            kwargs["gist_window"] = Window.of_mask(self.n_layers, mask)
        self._embedding_window = kwargs.get("gist_window")
        return args, kwargs

    def _close(self, *_: Any) -> None:
        self._embedding_window = None

    def _embed(self, _module: Any, _args: Any, output: Tensor) -> Tensor:
        return output if self._embedding_window is None else self._with_gists(output, self._embedding_window.rows)

    def _with_gists(self, embedded: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:
            return embedded
        gist = getattr(self.decoder, f"{PREFIX}_embed_tokens").weight.to(embedded.dtype)
        flat = embedded.flatten(0, 1)
        return flat.index_copy(0, rows, gist.expand(len(rows), -1)).view_as(embedded)


def attach(model: Any, config: GistConfig, *, self_test: bool = True) -> Attachment:
    """Add gist modules and hooks to a loaded causal LM.

    The new projections are copies of the base projections and the gist embedding is that of the end token, so the model
    has to be trained or given the weights of a checkpoint. Afterwards its forward takes the keyword `gist_mask`.

    Paper: UltraGist, arXiv 2405.16635, section 3.1.

    Args:
        model: A Hugging Face causal LM of the Llama kind (Llama, Mistral, Qwen2, Qwen3 and others that pass the test).
        config: Settings; `projections` and `rank` decide what is added.
        self_test: Whether to prove on 16 tokens that captured keys, rotated, equal the stock cache's keys.

    Returns:
        The attachment, also a context manager that detaches on exit.

    Raises:
        UnsupportedModelError: If the model is built otherwise, or its keys or positions are of another kind.
        InputError: If the model has gist modules already.

    Example:
        >>> from ultragist_rag.testing import tiny_model
        >>> with attach(tiny_model("llama"), GistConfig(window=8, ratio=4)) as attachment:
        ...     sorted(attachment.parameters())[0]
        'model.layers.0.self_attn.ultragist_k_proj.weight'
    """
    from ultragist_rag.modeling.selftest import check_keys, check_structure

    check_structure(model)
    if hasattr(decoder_of(model), f"{PREFIX}_embed_tokens"):
        raise InputError("the model has gist modules already. Detach (or close the engine that has it) first.")
    attachment = Attachment(model, config)
    if self_test:
        try:
            check_keys(attachment)
        except BaseException:
            attachment.detach()
            raise
    return attachment


def _n_positions(config: Any) -> int:
    limit = int(config.max_position_embeddings)
    sliding = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if sliding and (kinds is None or "sliding_attention" in kinds):
        limit = min(limit, int(sliding))
    return limit
