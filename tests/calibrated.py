"""Calibrations made up by hand."""

from __future__ import annotations

from typing import Any

from ultragist_rag.modeling.calibration import Calibration, Figures, settings_of


def figures_of(ratio: int, composed: float, joint: float = 0.1, agreement: float = 0.9) -> list[Figures]:
    settings: dict[str, Any] = {"ratio": ratio, "exact_match": (0.5, 0.4, 0.6)}
    more = {"joint_agreement": (0.5, 0.4, 0.6), "joint_kl": (0.1, 0.0, 0.2)}
    return [
        Figures(method="joint", agreement=(0.9, 0.8, 1.0), kl=(joint, 0.0, 1.0), **settings),
        Figures(method="composed", agreement=(agreement, 0.0, 1.0), kl=(composed, 0.0, 9.0), **settings, **more),
    ]


def calibration_of(engine: Any, *rows: list[Figures]) -> Calibration:
    plain = {"ratio": None, "exact_match": (0.5, 0.4, 0.6)}
    first = Figures(method="plain", agreement=(1.0, 1.0, 1.0), kl=(0.0, 0.0, 0.0), **plain)  # type: ignore[arg-type]
    closed = Figures(method="closed", agreement=(0.0, 0.0, 0.0), kl=(2.0, 1.5, 2.5), **plain)  # type: ignore[arg-type]
    return Calibration(
        fingerprint=engine.fingerprint,
        tokenizer_fingerprint=engine.tokenizer_fingerprint,
        settings=settings_of(engine.config),
        date="2026-01-31",
        command="by hand",
        versions={"torch": "1"},
        questions=3,
        figures=(first, closed, *(one for row in rows for one in row)),
    )
