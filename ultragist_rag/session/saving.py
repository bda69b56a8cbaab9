"""Where a session is saved: its manifest, the pages and memories that it needs, and what can go.

Is        `Saving`, one for each session object; the names of saved sessions; deleting one.
Flow      store, pages, state -> [saving] -> session.
Change    what a manifest says (raise _FORMAT), who counts as a relative.
Not here  what pages say -> pages.py; making memories that are gone -> session.py.
Holds     a manifest is written after all it names; what is deleted is named by no manifest of a fork.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from ultragist_rag.errors import CorruptGistError, InputError, StoreError
from ultragist_rag.layout.session_plan import SessionPlan
from ultragist_rag.session.pages import PAGE_KIND, Archive, Pages
from ultragist_rag.session.state import Part, State, Turn, planned
from ultragist_rag.store import GistStore

__all__ = ["Saving", "delete_saved", "read_manifest", "saved_names", "state_of"]

_FORMAT = 1
_SESSION, _FAMILY = "session", "family"


class Saving:
    """As what a session is saved, and since when it has changed."""

    def __init__(self, store: GistStore, family: str, *, forked_from: str | None = None) -> None:
        """Begin with nothing saved.

        Args:
            store: Where to save.
            family: Of the session and its forks.
            forked_from: Name of the saved session that this one is a fork of.
        """
        self.store = store
        self.family = family
        self.uid = secrets.token_hex(8)
        self.name: str | None = None
        self.relatives = {forked_from} if forked_from else set[str]()
        self.markers: set[str] = set()  # put by this session and not deleted yet
        self._revision: str | None = None
        self._pages: frozenset[str] = frozenset()

    @classmethod
    def of(cls, store: GistStore, name: str, manifest: Mapping[str, Any]) -> Saving:
        """Go on from a saved session."""
        saving = cls(store, manifest["family"])
        saving.uid, saving.name, saving._revision = manifest["uid"], name, manifest["revision"]
        saving._pages = frozenset(manifest["pages"])
        saving.markers = {marker for *_, marker in manifest["memories"]}
        return saving

    def check(self, name: str) -> None:
        """Refuse to overwrite what this session did not write.

        Raises:
            InputError: If the name is that of another session.
            StoreError: If the session was saved by another process meanwhile.
        """
        there = self.store.records.get(_SESSION, name)
        if there is None:
            return
        if there["uid"] != self.uid or name != self.name:
            raise InputError(f"there is another session {name!r} in the store: load or delete it, or choose a name.")
        if there["revision"] != self._revision:
            raise StoreError(
                f"session {name!r} was saved by somebody else since it was loaded: load it again, or save this one "
                "under another name."
            )

    def write(self, name: str, state: State, about: Mapping[str, Any], in_use: Iterable[str] = ()) -> None:
        """Save a state whose memories are all in the store, then delete what is needed no longer.

        Args:
            name: Of the session.
            state: What to save.
            about: Further entries of the manifest; JSON values.
            in_use: Pages and markers that forks in this process still need.

        Raises:
            StoreError: If it cannot be written, or a page has left the store; what was saved before is still there.
        """
        self._check_pages(name, state.archive)
        manifest = {**_manifest(state), **about, "family": self.family, "uid": self.uid}
        manifest["revision"] = secrets.token_hex(8)
        items: list[tuple[str, str, Mapping[str, Any]]] = []
        if state.archive.rest:
            tail, payload = state.archive.pages.make(state.archive.rest)
            items.append((PAGE_KIND, tail, payload))
            manifest["pages"].append(tail)
        known = self._family()
        relatives = known | self.relatives | {name} | ({self.name} if self.name else set())
        if relatives != known:  # also for the first: a fork may be made of a session that has no name yet
            items.append((_FAMILY, self.family, {"sessions": sorted(relatives)}))
        self.store.records.put_all([*items, (_SESSION, name, manifest)])
        self.name, self.relatives, self._revision = name, relatives - {name}, manifest["revision"]
        self._clean(state.archive.pages, manifest, set(in_use))

    def _check_pages(self, name: str, archive: Archive) -> None:
        """Refuse to save a session of which a page is gone; those that its own manifest names are safe."""
        is_there = name == self.name and self.store.records.get(_SESSION, name) is not None
        for page in archive.names:
            if not (is_there and page in self._pages) and self.store.records.stored(PAGE_KIND, page) is None:
                raise StoreError(
                    f"session {name!r} is not saved: page {page} of its archive has left the store, because the "
                    "session was deleted, or shortened by another process, or the store was pruned meanwhile."
                )

    def _clean(self, pages: Pages, manifest: Mapping[str, Any], in_use: set[str]) -> None:
        used = in_use | _used(manifest)
        old_pages, old_markers = (pages.written | self._pages) - used, self.markers - used
        self._pages = frozenset(manifest["pages"])
        if old_pages or old_markers:
            _delete_unused(self.store, old_pages, old_markers, self.relatives)
        pages.written -= old_pages
        self.markers -= old_markers

    def _family(self) -> set[str]:
        record = self.store.records.get(_FAMILY, self.family)
        return set(record["sessions"]) if record else set()


def saved_names(store: GistStore) -> list[str]:
    """Return the names of the sessions in a store, sorted."""
    return store.records.names(_SESSION)


def read_manifest(store: GistStore, name: str) -> dict[str, Any]:
    """Read what is known of a saved session.

    Raises:
        InputError: If there is none of this name.
        CorruptGistError: If it is damaged, or of an unknown version.
    """
    manifest = store.records.get(_SESSION, name)
    if manifest is None:
        raise InputError(f"there is no session {name!r} in the store: see `GistSession.names(store)`.")
    if manifest.get("format") != _FORMAT:
        raise CorruptGistError(
            f"session {name!r} has format {manifest.get('format')!r}: this version reads {_FORMAT}. "
            "Update ultragist-rag."
        )
    return manifest


def delete_saved(store: GistStore, name: str) -> bool:
    """Delete a session with all pages and memories that no fork needs; say whether there was one."""
    manifest = store.records.get(_SESSION, name)
    if manifest is None:
        return False
    store.records.delete(_SESSION, [name])
    record = store.records.get(_FAMILY, manifest["family"]) or {"sessions": []}
    relatives = [other for other in record["sessions"] if other != name]
    _delete_unused(store, manifest["pages"], [marker for *_, marker in manifest["memories"]], relatives)
    if relatives:
        store.records.put(_FAMILY, {manifest["family"]: {"sessions": relatives}})
    else:
        store.records.delete(_FAMILY, [manifest["family"]])
    return True


def state_of(
    manifest: Mapping[str, Any], pages: Pages, empty: SessionPlan
) -> tuple[State, dict[Part, tuple[int, str]]]:
    """Return a saved state without its memories, and ratio and marker of each memory.

    Args:
        manifest: Of the session.
        pages: Where its pages are.
        empty: A plan without segments.

    Returns:
        The state, and what to read.
    """
    names, firsts = manifest["pages"], manifest["firsts"]
    archive = Archive(pages=pages, names=tuple(names[: len(firsts)]), firsts=tuple(firsts))
    if len(names) > len(firsts):
        archive = replace(archive, rest=tuple(pages.read(names[-1]).turns.items()))
    turns = tuple(
        Turn(**{**turn, "lengths": tuple(turn["lengths"]), "extras": tuple(turn.get("extras", ()))})
        for turn in manifest["turns"]
    )
    memories = {(turn, number): (ratio, marker) for turn, number, ratio, marker in manifest["memories"]}
    plan = planned(empty, turns)
    return State(archive=archive, plan=plan, turns=turns, next_id=manifest["next_id"]), memories


def _manifest(state: State) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "pages": list(state.archive.names),
        "firsts": list(state.archive.firsts),
        "turns": [
            {name: value for name, value in asdict(turn).items() if value is not None and value is not False}
            for turn in state.turns
        ],
        "memories": [[*part, held.ratio, held.marker] for part, held in state.held.items()],
        "next_id": state.next_id,
    }


def _used(manifest: Mapping[str, Any]) -> set[str]:
    return {*manifest["pages"], *(marker for *_, marker in manifest["memories"])}


def _delete_unused(store: GistStore, pages: Iterable[str], markers: Iterable[str], relatives: Iterable[str]) -> None:
    """Delete pages and memories but those that saved relatives need."""
    manifests = (store.records.get(_SESSION, name) for name in relatives)
    used = set().union(*(_used(manifest) for manifest in manifests if manifest))
    store.records.delete(PAGE_KIND, set(pages) - used)
    for marker in set(markers) - used:
        store.delete(marker)
