"""What must go so that something new fits.

Is        a pure function over sizes in order of use, and the refusal of what can never fit.
Flow      base -> [eviction] -> memory_bytes, disk, redis_bytes, indexed_bytes. Imports no torch.
Change    the order of eviction, in the script of redis_bytes.py, too.
Not here  how a place removes what must go -> its own file.
Holds     memories go before source records, what was not used for longest first; records never go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ultragist_rag.errors import StoreError
from ultragist_rag.store.base import GIST, RECORD, SOURCE, check_items

__all__ = ["check_fit", "plan_eviction"]


def check_fit(n_bytes: int, bound: int | None, name: str = "max_bytes", n_kept: int = 0) -> None:
    """Refuse what would not fit even when everything went that may go.

    Args:
        n_bytes: What is to be stored.
        bound: How much may be there; None for any number.
        name: What the caller knows the bound as.
        n_kept: Bytes of the records, which stay.

    Raises:
        StoreError: If it does not fit.
    """
    if bound is not None and n_bytes + n_kept > bound:
        beside = f" beside {n_kept} bytes of records, which are never evicted" if n_kept else ""
        raise StoreError(
            f"what belongs together takes {n_bytes} bytes{beside}, but {name} is {bound}: nothing was stored. "
            f"Raise {name}, delete records, or compress at a higher ratio."
        )


def plan_eviction(
    rows: Iterable[tuple[str, int]], items: Mapping[str, bytes], max_bytes: int | None, quota: int | None
) -> list[str]:
    """Return the keys that must go before `items` are put.

    Args:
        rows: Key and size in bytes of everything that is there, the one used last at the end.
        items: What is to be put; what it replaces goes anyway.
        max_bytes: Bound on everything.
        quota: Bound on the folder of the items; only what is in the folder goes for it.

    Returns:
        The keys, in order.

    Raises:
        StoreError: If the items do not fit beside the records.
    """
    folder = check_items(items)
    n_bytes = sum(map(len, items.values()))
    left = {key: size for key, size in rows if key not in items}
    victims = []
    for bound, name, start in ((quota, "quota", f"{folder}/"), (max_bytes, "max_bytes", "")):
        here = [(key, size) for key, size in left.items() if key.startswith(start)]
        check_fit(n_bytes, bound, name, sum(size for key, size in here if key.endswith(RECORD)))
        excess = 0 if bound is None else sum(size for _, size in here) + n_bytes - bound
        for key, size in [row for ending in (GIST, SOURCE) for row in here if row[0].endswith(ending)]:
            if excess <= 0:
                break
            excess -= size
            del left[key]
            victims.append(key)
    return victims
