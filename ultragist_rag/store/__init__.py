"""Where memories are kept: `GistStore` in front, byte stores behind it. The byte stores import no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultragist_rag.store.quantise import QuantisationReport, quantisation_report
    from ultragist_rag.store.records import Records
    from ultragist_rag.store.refs import neutralise, to_marker
    from ultragist_rag.store.refs import parse as parse_marker
    from ultragist_rag.store.reports import Rotation, StoreProgress, StoreStats, TierStats
    from ultragist_rag.store.scope import MarkerScope, marker_scope
    from ultragist_rag.store.source import SourceRecord
    from ultragist_rag.store.store import GistStore

_HOMES = {
    "GistStore": "store.GistStore",
    "MarkerScope": "scope.MarkerScope",
    "QuantisationReport": "quantise.QuantisationReport",
    "Records": "records.Records",
    "Rotation": "reports.Rotation",
    "SourceRecord": "source.SourceRecord",
    "StoreProgress": "reports.StoreProgress",
    "StoreStats": "reports.StoreStats",
    "TierStats": "reports.TierStats",
    "marker_scope": "scope.marker_scope",
    "neutralise": "refs.neutralise",
    "parse_marker": "refs.parse",
    "quantisation_report": "quantise.quantisation_report",
    "to_marker": "refs.to_marker",
}

__all__ = [
    "GistStore",
    "MarkerScope",
    "QuantisationReport",
    "Records",
    "Rotation",
    "SourceRecord",
    "StoreProgress",
    "StoreStats",
    "TierStats",
    "marker_scope",
    "neutralise",
    "parse_marker",
    "quantisation_report",
    "to_marker",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(".")
    return getattr(import_module(f"{__name__}.{module}"), attribute)
