"""The suites: every file of this folder is one; a file that is there is registered, and tested."""

from __future__ import annotations

import importlib
import pkgutil

from benchmarks.suite import Suite
from ultragist_rag.errors import InputError

__all__ = ["SUITES", "find_suites"]

_MODULES = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
SUITES: dict[str, Suite] = {
    suite.name: suite for suite in sorted((module.SUITE for module in _MODULES), key=lambda one: one.order)
}


def find_suites(names: str) -> list[Suite]:
    """Find suites by names between commas, or all of them by `all`.

    Args:
        names: The names.

    Returns:
        The suites, in the order of the page.

    Raises:
        InputError: If there is none of a name.
    """
    wanted = [name.strip() for name in names.split(",")]
    wanted = list(SUITES) if wanted == ["all"] else wanted
    unknown = [name for name in wanted if name not in SUITES]
    if unknown:
        raise InputError(f"suite {unknown[0]!r} is unknown. Known are {', '.join(SUITES)}, and all.")
    return [suite for name, suite in SUITES.items() if name in wanted]
