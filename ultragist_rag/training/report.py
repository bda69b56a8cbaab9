"""Show what a dry run found, line by line, each figure with how it was come by.

Is        records in, lines of text out: counted, measured, or worked out.
Flow      dry_run, forecast -> [report] -> cli.
Change    wording and order of the lines.
Holds     every line begins with `counted`, `measured` or `worked out`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ultragist_rag.training.dry_run import TrainReport
from ultragist_rag.training.forecast import Forecast

__all__ = ["report_lines"]


def report_lines(report: TrainReport | Forecast) -> list[str]:
    """Put a report into lines.

    Args:
        report: Of a dry run, measured or worked out.

    Returns:
        Lines such as `counted     trained parameters: 1,024`.
    """
    lines = list(_counted(report))
    if isinstance(report, TrainReport):
        lines += _measured(report)
    else:
        lines += _worked_out(report)
    return [f"{how:<12}{what}" for how, what in lines]


def _counted(report: TrainReport | Forecast) -> Iterator[tuple[str, str]]:
    yield "counted", f"parameters: {report.n_parameters:,}"
    yield "counted", f"trained parameters: {report.n_trained:,}"
    yield "counted", f"optimiser steps: {report.n_steps:,}"
    for stage, tokens in report.stage_tokens.items():
        yield "counted", f"tokens of stage {stage}, about: {tokens:,}"
    yield "counted", f"tokens in all, about: {report.n_tokens:,}"
    yield "counted", f"weights: {_gigabytes(report.weight_bytes)}"
    yield "counted", f"gradients: {_gigabytes(report.gradient_bytes)}"
    yield "counted", f"optimiser states: {_gigabytes(report.optimizer_bytes)}"


def _measured(report: TrainReport) -> Iterator[tuple[str, str]]:
    for entry in report.batches:
        memory = "" if entry.activation_bytes is None else f", {_gigabytes(entry.activation_bytes)}"
        batch = f"one batch of stage {entry.stage}, mode {entry.mode}, {entry.tokens:,} tokens"
        yield "measured", f"{batch}: {entry.seconds:.3f} s{memory}"
    for stage, seconds in report.step_seconds.items():
        yield "worked out", f"seconds per step of stage {stage}: {seconds:.3f}"
    if report.activation_bytes is not None:
        yield "measured", f"activations: {_gigabytes(report.activation_bytes)} ({report.memory_measured_by})"
    else:
        yield "measured", f"activations: {report.memory_measured_by}"
    yield "worked out", f"memory on one device: {_gigabytes(report.memory_bytes)}"
    yield "worked out", f"hours at the measured speed, without optimiser steps and checkpoints: {report.hours:,.3f}"


def _worked_out(report: Forecast) -> Iterator[tuple[str, str]]:
    yield "worked out", f"activations, every token labelled: {_gigabytes(report.activation_bytes)}"
    yield "worked out", f"memory on one device: {_gigabytes(report.memory_bytes)}"
    yield "worked out", f"FLOPs, 6 x parameters x tokens: {report.flops:.3g}"
    yield "worked out", f"hours at an assumed {report.tflops:g} TFLOPs per second: {report.hours:,.1f}"


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.3f} GB"
