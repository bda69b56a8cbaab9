"""Fields that the components of both frameworks have in common, each in one place.

Is        pydantic mixins: `EngineFields` (which model), `CondenseFields` (how to condense), `ReadFields` (answers).
Flow      condense, reader, shared -> [components] -> langchain_ultragist, llama_index_ultragist.
Change    a setting that users of both frameworks may set.
Not here  what the settings do -> condense.py, reader.py, memory/decoding.py.
Holds     nothing is loaded when a component is made; store and engine never appear in what is traced or serialised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_serializer, model_validator

from ultragist_rag.condense import CondensePolicy
from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError
from ultragist_rag.reader import Reader
from ultragist_rag.shared import EngineHolder, engine_holder
from ultragist_rag.store import GistStore
from ultragist_rag.store.citing import cite

__all__ = ["CondenseFields", "EngineFields", "ReadFields"]

_PLAIN = (str, int, float, list, tuple, dict, type(None))


class EngineFields(BaseModel):
    """Which model, and where its memories are.

    The model is loaded at first use and shared by all components with equal `model_name` and `model_kwargs`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True, protected_namespaces=())

    store: GistStore | None = Field(default=None, exclude=True, repr=False)
    """Where the memories are."""

    model_name: str = Field(default="bundled", alias="model")
    """What `UltraGist.from_pretrained` loads at first use; not used if `engine` is given."""

    engine: UltraGist | None = Field(default=None, exclude=True, repr=False)
    """A loaded engine, used instead of `model_name`."""

    model_kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Options of `UltraGist.from_pretrained`, such as revision, dtype and device_map; `token` is never serialised."""

    _holder: EngineHolder = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Go on to the framework's own: pydantic puts a method that does not in its place where fields are private."""
        super().model_post_init(context)
        self._holder = engine_holder(self.model_name, self.model_kwargs)

    @field_serializer("model_kwargs")
    def _plain_model_kwargs(self, options: dict[str, Any]) -> dict[str, Any]:
        shown = {name: value for name, value in options.items() if name != "token"}
        return {name: value if isinstance(value, _PLAIN) else str(value) for name, value in shown.items()}

    def _get_engine(self) -> UltraGist:
        """Return the engine; it is loaded if need be."""
        if self.engine is not None:
            return self.engine
        if self._holder.settings != (self.model_name, self.model_kwargs):  # a copy may have other settings by now
            self._holder = engine_holder(self.model_name, self.model_kwargs)
        return self._holder.get()


class CondenseFields(EngineFields):
    """How to condense texts into memories. A setting that does not exist is refused."""

    model_config = ConfigDict(extra="forbid")

    store: GistStore = Field(exclude=True, repr=False)
    """Where the memories go."""

    ratio: int | None = None
    """Raw tokens per gist token; None for the ratio of the engine's config, or for what `slots` leaves."""

    slots: int | None = None
    """Memory slots that all texts of a call may take together, divided by rank or score."""

    ratios: tuple[int, ...] = ()
    """Ratios to choose from with `slots`; those the model was trained with if empty."""

    min_tokens: int = 0
    """A text with fewer tokens stays text."""

    on_miss: Literal["compress", "stored"] = "compress"
    """`stored` takes what is in the store already where that fits, and compresses only what is not."""

    verbatim: str | None = None
    """Policy of the tokens that stay raw beside the gists: `codes`, `regex`, `surprisal`, `both` or one of your own."""

    @model_validator(mode="after")
    def _check_condense_policy(self) -> Any:
        self._policy()
        return self

    def _policy(self) -> CondensePolicy:
        """Return the settings as a policy."""
        return CondensePolicy(
            ratio=self.ratio,
            slots=self.slots,
            ratios=self.ratios,
            min_tokens=self.min_tokens,
            on_miss=self.on_miss,
            verbatim=self.verbatim,
        )


class ReadFields(EngineFields):
    """How to read prompts and decode answers."""

    max_tokens: int = Field(default=128, alias="max_new_tokens", ge=1)
    """Longest answer in tokens."""

    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token, more lets chance in."""

    top_p: float | None = Field(default=None, gt=0, le=1)
    """Draw among the likeliest tokens that together have this probability."""

    top_k: int | None = Field(default=None, ge=0)
    """Draw among this many likeliest tokens."""

    seed: int | None = None
    """Of the draws; equal seeds give equal answers."""

    source_bias: float | None = Field(default=None, ge=0)
    """How strongly answers are held to the words of prompt and memories; None takes what the model was made for."""

    stop: list[str] | None = None
    """Texts that end an answer and are not part of it; those of a call replace them."""

    timeout: float | None = Field(default=None, gt=0)
    """Seconds that a request may take, waiting for others included."""

    max_waiting: int = Field(default=64, ge=0)
    """Requests that may wait for the engine; one more is refused."""

    max_slots: int | None = Field(default=None, ge=0)
    """Memory slots that one prompt may have."""

    unknown_markers: Literal["error", "text"] = "error"
    """Whether a marker that is not of the store's namespace is refused or stays text."""

    sources: Literal["attention", "leave-one-out"] | None = None
    """How to find out which memories an answer was read from; None for not at all."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_misspelt_settings(cls, values: Any) -> Any:
        """Settings of other providers may be given and mean nothing here; what looks like one of ours must be one."""
        known = {name for key, entry in cls.model_fields.items() for name in (key, entry.alias) if name}
        for name in values if isinstance(values, Mapping) else ():
            near = get_close_matches(str(name), known, n=1, cutoff=0.85)
            if name not in known and near:
                raise InputError(f"there is no setting {name!r}: did you mean {near[0]!r}?")
        return values

    @property
    def _name(self) -> str:
        """What traces and answers call the model."""
        if self.engine is None or "model_name" in self.model_fields_set:
            return self.model_name
        return getattr(self.engine.model.config, "_name_or_path", "") or f"ultragist-{self.engine.fingerprint[:12]}"

    def _reader(self) -> Reader:
        """Return a reader with these settings."""
        return Reader(
            self._get_engine(),
            self.store,
            max_slots=self.max_slots,
            unknown_markers=self.unknown_markers,
            max_waiting=self.max_waiting,
            timeout=self.timeout,
        )

    def _decoding(self, stop: list[str] | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings for `Reader.answer` and `Reader.stream`; those of a call go before those of the fields."""
        given = dict(kwargs)
        settings: dict[str, Any] = {
            "max_new_tokens": _first(given.pop("max_tokens", None), given.pop("max_new_tokens", None), self.max_tokens)
        }
        for name in ("temperature", "top_p", "top_k", "seed", "source_bias", "sources"):
            value = _first(given.pop(name, None), getattr(self, name))
            if value is not None:
                settings[name] = value
        settings["do_sample"] = settings["temperature"] > 0
        texts = _first(given.pop("stop", None), stop, self.stop)
        if texts:
            settings["stop"] = texts
        return settings | given

    @staticmethod
    def _marked(n_from_text: int) -> dict[str, Any]:
        """Say how many documents were read from their text instead of their memory; nothing if none were."""
        return {"ultragist": {"read_from_text": n_from_text}} if n_from_text else {}

    def _cited(self, pieces: Sequence[Any], scores: Sequence[float] | None) -> dict[str, Any]:
        """Return what an answer says about the memories it was read from; nothing if it was not asked to."""
        return {} if scores is None else {"sources": cite(self.store, pieces, scores)}


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
