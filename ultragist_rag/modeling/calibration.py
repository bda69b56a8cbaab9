"""What it costs to compose independently compressed documents: figures beside the weights, and the verdict on them.

Is        `Calibration`: rows of figures, thresholds, what they were measured with; to and from one JSON file.
Flow      errors -> [calibration] -> loading, saving -> engine -> store. Imports no torch.
Paper     none; composing is ours.
Change    the rule (`is_good`), what the file holds (raise FORMAT_VERSION).
Not here  measuring -> evaluation/calibrate.py; reading text instead of a memory -> store/fallback.py.
Holds     `Calibration.from_dict(calibration.to_dict()) == calibration`; a memory's id knows nothing of it.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ultragist_rag.errors import CheckpointError, InputError

__all__ = ["CALIBRATION_FILE", "Calibration", "Figures", "Thresholds", "doubt", "settings_of"]

CALIBRATION_FILE = "ultragist_calibration.json"
FORMAT_VERSION = 1

Interval = tuple[float, float, float]
"""A mean with the lower and upper bound of its 95 % interval."""

Method = Literal["plain", "closed", "joint", "composed"]
_METHODS = ("plain", "closed", "joint", "composed")
_FREE = ("ratio", "ratios", "ratio_policy", "adapt_tokens", "adapt_positions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """How far composed memories may be from the plain text; see `Calibration.is_good`.

    Attributes:
        max_kl_share: Share of the divergence without any document that may be left.
        max_agreement_loss: Agreement with the plain text that may be lost against joint memories.
        max_kl_factor: Times the divergence of joint memories.
        kl_slack: Nats that are added to both bounds of the divergence, for models where these are near 0.

    Raises:
        InputError: If one is no number of at least 0.
    """

    max_kl_share: int | float = 0.5
    max_agreement_loss: int | float = 0.05
    max_kl_factor: int | float = 1.5
    kl_slack: int | float = 0.05

    def __post_init__(self) -> None:
        """Check everything once."""
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise InputError(f"{name} is {value!r}, but must be a number of at least 0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One way to show the documents, over all questions.

    Attributes:
        method: `plain` text, `closed` (no document), `joint` (one stream) or `composed` (documents one by one).
        ratio: Raw tokens per gist token; None without memories.
        exact_match: Share of answers that are right.
        agreement: Share of answers that are those from the plain text.
        kl: Divergence of the next token from that behind the plain text, KL(plain || this), in nats.
        joint_agreement: Of `composed`: share of answers that are those from joint memories.
        joint_kl: Of `composed`: KL(joint || this).
    """

    method: Method
    ratio: int | None
    exact_match: Interval
    agreement: Interval
    kl: Interval
    joint_agreement: Interval | None = None
    joint_kl: Interval | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Figures:
        """Make figures from JSON values.

        Args:
            values: By name.

        Returns:
            The figures.

        Raises:
            ValueError: If a value does not fit.
        """
        method, ratio = values["method"], values["ratio"]
        if method not in _METHODS:
            raise ValueError(f"method is {method!r}")
        if (ratio is None) != (method in ("plain", "closed")) or not isinstance(ratio, int | None):
            raise ValueError(f"ratio of {method} is {ratio!r}")
        is_composed = method == "composed"
        names = ("exact_match", "agreement", "kl", *(("joint_agreement", "joint_kl") if is_composed else ()))
        return cls(method=method, ratio=ratio, **{name: _interval(values[name]) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Figures of one model, and the thresholds they are held against.

    Attributes:
        fingerprint: Of the model with its gist parameters.
        tokenizer_fingerprint: Of its tokenizer.
        settings: Those of the `GistConfig` that memories depend on, ratios aside.
        date: Day of the measurement, as 2026-01-31.
        command: What measured it.
        versions: Of the libraries.
        questions: Number of questions.
        figures: The rows.
        thresholds: For the verdict.
    """

    fingerprint: str
    tokenizer_fingerprint: str
    settings: Mapping[str, Any]
    date: str
    command: str
    versions: Mapping[str, str]
    questions: int
    figures: tuple[Figures, ...]
    thresholds: Thresholds = field(default_factory=Thresholds)

    @property
    def ratios(self) -> tuple[int, ...]:
        """The ratios that were measured, in order."""
        return tuple(sorted({one.ratio for one in self.figures if one.method == "composed" and one.ratio is not None}))

    def row(self, method: Method, ratio: int | None = None) -> Figures:
        """Return the figures of a method at a ratio.

        Args:
            method: One of those of `Figures`.
            ratio: For `joint` and `composed`, one of `ratios`.

        Returns:
            The figures.

        Raises:
            InputError: If there are none.
        """
        found = next((one for one in self.figures if (one.method, one.ratio) == (method, ratio)), None)
        if found is None:
            raise InputError(f"{method} at ratio {ratio} was not measured: there are {self.ratios}.")
        return found

    def is_good(self, ratio: int) -> bool | None:
        """Say whether composed memories may stand in the place of the plain text.

        They must bring most of what the documents bring: their divergence from the plain text is at most
        `max_kl_share` of that without any document. And composing must cost little: they agree with the plain text
        about as often as joint memories do (`max_agreement_loss`), or diverge from it about as little
        (`max_kl_factor`); only if both say otherwise it costs too much.

        Args:
            ratio: Raw tokens per gist token. One that was not measured is judged by the nearest higher one that was.

        Returns:
            The verdict; None if neither this ratio nor a higher one was measured.
        """
        judged = next((one for one in self.ratios if one >= ratio), None)
        if judged is None:
            return None
        limits, closed = self.thresholds, self.row("closed")
        joint, composed = self.row("joint", judged), self.row("composed", judged)
        if composed.kl[0] > limits.max_kl_share * closed.kl[0] + limits.kl_slack:
            return False
        agrees = composed.agreement[0] >= joint.agreement[0] - limits.max_agreement_loss
        return agrees or composed.kl[0] <= limits.max_kl_factor * joint.kl[0] + limits.kl_slack

    def mismatch(self, engine: Any) -> str | None:
        """Say why the figures are not those of an engine; None if they are."""
        if self.fingerprint != engine.fingerprint:
            return f"it is of model {self.fingerprint[:12]}, this is {engine.fingerprint[:12]}"
        if self.tokenizer_fingerprint != engine.tokenizer_fingerprint:
            return f"it is of tokenizer {self.tokenizer_fingerprint[:12]}, this is {engine.tokenizer_fingerprint[:12]}"
        now = settings_of(engine.config)
        other = [name for name, value in self.settings.items() if now.get(name) != value]
        return f"it was measured with another {other[0]}: {self.settings[other[0]]!r}" if other else None

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of the file."""
        figures = [{name: value for name, value in asdict(one).items() if value is not None} for one in self.figures]
        rows = [{"ratio": None, **one} for one in figures]
        return {**asdict(self), "format_version": FORMAT_VERSION, "figures": rows}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Make a calibration from the contents of its file.

        Args:
            values: What `to_dict` returned, from JSON.

        Returns:
            The calibration.

        Raises:
            ValueError: If a value does not fit.
        """
        if values["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version is {values['format_version']!r}, this version reads {FORMAT_VERSION}")
        texts = {name: values[name] for name in ("fingerprint", "tokenizer_fingerprint", "date", "command")}
        wrong = [name for name, value in texts.items() if not isinstance(value, str)]
        if wrong:
            raise ValueError(f"{wrong[0]} is {texts[wrong[0]]!r}")
        made = cls(
            **texts,
            settings=dict(values["settings"]),
            versions=dict(values["versions"]),
            questions=int(values["questions"]),
            figures=tuple(map(Figures.from_dict, values["figures"])),
            thresholds=Thresholds(**values["thresholds"]),
        )
        made.row("closed")
        for ratio in made.ratios:
            made.row("joint", ratio)
        return made

    @classmethod
    def read(cls, path: str | Path) -> Calibration:
        """Read a file.

        Args:
            path: The file.

        Returns:
            The calibration.

        Raises:
            CheckpointError: If it is missing, damaged or of an unknown version.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"the calibration {str(path)!r} cannot be read ({type(error).__name__}: {error}). Delete it, or write "
                "it again with `ultragist-rag calibrate`."
            ) from error

    def write(self, path: str | Path) -> None:
        """Write a file, at once or not at all.

        Args:
            path: The file; it is replaced.

        Raises:
            CheckpointError: If it cannot be written.
        """
        file, text = Path(path), json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
        try:
            handle, work = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as stream:
                    stream.write(text)
                Path(work).chmod(0o644)  # like the files beside it
                Path(work).replace(file)
            finally:
                Path(work).unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"{str(file)!r} cannot be written: {error}. Name another file.") from error


def settings_of(config: Any) -> dict[str, Any]:
    """Return what figures depend on in a `GistConfig`; ratios are measured one by one."""
    return {name: value for name, value in config.to_dict().items() if name not in _FREE}


def doubt(calibration: Calibration | None, ratio: int, trained_composed: bool) -> str | None:
    """Say why independent memories at a ratio are not to be relied on.

    Args:
        calibration: Of the model, if it was measured.
        ratio: Raw tokens per gist token.
        trained_composed: Whether the model was trained on independent documents; asked where nothing was measured.

    Returns:
        A warning; None if there is no doubt.
    """
    good = calibration.is_good(ratio) if calibration is not None else None
    if good or (good is None and trained_composed):
        return None
    if good is None:
        return (
            "the authors did not train this checkpoint on independently compressed documents. Calibrate before you "
            "rely on it (`ultragist-rag calibrate` compares answers from composed memories, joint ones and plain "
            "text), or pass joint=True."
        )
    return (
        f"the calibration of this model says that independently compressed documents at ratio {ratio} do not stand for "
        "their text. Take a lower ratio, or pass joint=True; prompts from a store read the text instead."
    )


def _interval(values: Any) -> Interval:
    value, low, high = values
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in (value, low, high)):
        raise ValueError(f"an interval is {values!r}")
    return float(value), float(low), float(high)
