"""Rotation: what is stored gets new ids, because the secret, the namespace, the place or the quantisation changes.

Is        copying from one shelf to another, file by file; new ids come from source records, or from the memory itself.
Flow      shelf, records -> [rotation] -> store.
Change    what moves along, and in which order.
Not here  how an id is computed -> refs.py; who calls it -> store.py, ultragist_rag/cli_store.py.
Holds     what was moved is readable under its new id before it is gone under the old one; what dies half-way through
          and is run again ends as if it had run once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ultragist_rag.errors import CorruptGistError
from ultragist_rag.sizing import Kind
from ultragist_rag.store import codec, source
from ultragist_rag.store.base import GIST, SOURCE
from ultragist_rag.store.recipes import can_repeat, recipe_of
from ultragist_rag.store.records import Records
from ultragist_rag.store.refs import to_marker
from ultragist_rag.store.reports import Rotation
from ultragist_rag.store.seal import N_HEAD, put_seal, stored_at
from ultragist_rag.store.shelf import Shelf, by_content
from ultragist_rag.store.source import SourceRecord

__all__ = ["copy", "rotate"]

Progress = Callable[[int, int], object]
"""Called with how many memories are done, and how many there are."""

_BATCH = 16
_JOURNAL = "rotation"
_PAGE = "page"
_ID = re.compile("[a-z2-7]{26}")
_CHECKSUM = b'"checksum":"'


@dataclass(slots=True)
class _Tally:
    """Old ids, and what became of them."""

    moved: dict[str, str] = field(default_factory=dict)
    without_source: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def add(self, old: Shelf, new: Shelf, name: str, kind: Kind | None) -> None:
        """Copy what is under an id."""
        try:
            new_name = _copy_one(old, new, name, kind)
        except CorruptGistError:
            self.damaged.append(to_marker(name))
            return
        if new_name is None:
            self.without_source.append(to_marker(name))
        else:
            self.moved[name] = new_name

    def report(self, n_records: int) -> Rotation:
        """Return it for users."""
        markers = {to_marker(name): to_marker(new_name) for name, new_name in self.moved.items()}
        return Rotation(markers, tuple(self.without_source), tuple(self.damaged), n_records)


def copy(old: Shelf, new: Shelf, kind: Kind | None = None, progress: Progress | None = None) -> Rotation:
    """Copy everything to another shelf; what is there already is left as it is.

    Args:
        old: Where it is.
        new: Where it goes.
        kind: Quantisation for what has another one; None to copy memories bit by bit.
        progress: Called after each memory.

    Returns:
        New ids by old ones, and what could not be copied.

    Raises:
        StoreError: If a place fails. Run it again then.
    """
    tally = _Tally()
    names = old.documents()
    for index, name in enumerate(names):
        tally.add(old, new, name, kind)
        (progress or _ignore)(index + 1, len(names))
    return tally.report(sum(1 for _ in _copy_records(old, new, tally)))


def rotate(old: Shelf, new: Shelf, *, drop: bool = False, progress: Progress | None = None) -> Rotation:
    """Move everything to the shelf of another secret in the same place.

    Args:
        old: Where it is.
        new: Where it goes.
        drop: Whether to remove what cannot move: memories whose text was not kept, and damaged files.
        progress: Called after each memory.

    Returns:
        New ids by old ones, those of an earlier run that did not come to its end among them.

    Raises:
        StoreError: If the place fails. Run it again then.
    """
    journal = Records(new)
    earlier = [name for name in journal.names(_JOURNAL) if name.startswith(old.folder)]
    first = 1 + max((int(name.rpartition(" ")[2]) for name in earlier), default=-1)
    tally = _Tally()
    for name in earlier:
        tally.moved |= journal.get(_JOURNAL, name) or {}
    names = old.documents()
    for start in range(0, len(names), _BATCH):
        batch = names[start : start + _BATCH]
        for index, name in enumerate(batch, start):
            tally.add(old, new, name, None)
            (progress or _ignore)(index + 1, len(names))
        moved = {name: tally.moved[name] for name in batch if name in tally.moved}
        journal.put(_JOURNAL, {f"{old.folder} {first + start // _BATCH:08d}": moved} if moved else {})
        for name in batch if drop else moved:
            old.delete(name)
    n_records = 0
    for kind, name in _copy_records(old, new, tally):
        Records(old).delete(kind, [name])
        n_records += 1
    return tally.report(n_records)


def _copy_one(old: Shelf, new: Shelf, name: str, kind: Kind | None) -> str | None:
    """Copy what is under an id; return its new id, None if that cannot be known."""
    record = old.source(name)
    known = record or _record_of_content(old, name)
    new_name, recipe = name, known.recipe if known else None
    if kind is not None or (old.keys.ids, old.namespace) != (new.keys.ids, new.namespace):
        if known is None:
            return None
        recipe = replace(known.recipe, dtype=kind or known.recipe.dtype)
        new_name = new.identify(recipe, known.text)
    items = {}
    if record is not None and recipe is not None:
        moved = replace(record, name=new_name, recipe=recipe)
        items[new.key(new_name, SOURCE)] = source.encode(moved, new.keys.files)
    if not new.has(new_name) or not all(map(new.place.contains, items)):
        data = _new_file(old, new, name, new_name, None if known and known.recipe.quantise == kind else kind)
        new.put(items if data is None else {**items, new.key(new_name, GIST): data})
    return new_name


def _record_of_content(old: Shelf, name: str) -> SourceRecord | None:
    """Return what the id of a memory without text was made of; None if it has a text, which nobody knows any more."""
    data = old.place.get(old.key(name, GIST))
    if data is None:
        return None
    memory = codec.decode(data, key=old.keys.files, expected=codec.Expected(name=name))
    recipe, text = by_content(memory, recipe_of(memory))
    return SourceRecord(name=name, text=text, recipe=recipe) if old.identify(recipe, text) == name else None


def _new_file(old: Shelf, new: Shelf, name: str, new_name: str, kind: Kind | None) -> bytes | None:
    """Return the file of a memory under its new id; None if it was evicted, or is damaged and can be made again."""
    data = old.place.get(old.key(name, GIST))
    if data is None:
        return None
    try:
        if kind is None:
            return _renamed(data, old, new, name, new_name)
        memory = codec.decode(data, key=old.keys.files, expected=codec.Expected(name=name))
    except CorruptGistError:
        record = old.source(name)
        if record is not None and can_repeat(record.recipe):
            return None
        raise
    return codec.encode(memory, key=new.keys.files, name=new_name, stored=stored_at(data[:N_HEAD]), quantise=kind)


def _renamed(data: bytes, old: Shelf, new: Shelf, name: str, new_name: str) -> bytes:
    """Return the file of a memory with another id, sealed with another key: all else is as it was, bit by bit."""
    codec.check_match(codec.read_manifest(data, key=old.keys.files), codec.Expected(name=name))
    begin = data.index(b'\\"name\\":\\"' + name.encode("ascii"))
    renamed = bytearray(data[:begin] + data[begin:].replace(name.encode("ascii"), new_name.encode("ascii"), 1))
    return put_seal(renamed, data.index(_CHECKSUM) + len(_CHECKSUM), new.keys.files)


def _copy_records(old: Shelf, new: Shelf, tally: _Tally) -> Iterator[tuple[str, str]]:
    """Copy records that are not there or older, those that name others last; yield kind and name of each that is there.

    Ids in them become the new ones. Pages are left as they are: they hold what people said.
    """
    source_records, target = Records(old), Records(new)
    for kind, name in sorted(source_records, key=lambda found: (found[0] == "session", found)):
        try:
            payload, stored = source_records.get(kind, name), source_records.stored(kind, name)
            if payload is None or stored is None:
                continue
            if (target.stored(kind, name) or -1.0) < stored:
                target.put(kind, {name: payload if kind == _PAGE else _with_new_ids(payload, tally.moved)})
        except CorruptGistError:
            tally.damaged.append(f"{kind} {name}")
            continue
        yield kind, name


def _with_new_ids(payload: Mapping[str, Any], moved: Mapping[str, str]) -> dict[str, Any]:
    text = _ID.sub(lambda found: moved.get(found.group(), found.group()), json.dumps(payload))
    return dict(json.loads(text))


def _ignore(_done: int, _total: int) -> None:
    """Report to nobody."""
