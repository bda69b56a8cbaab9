"""A rotation that is interrupted several times still tells all new ids."""

import pytest

from ultragist_rag.store import GistStore, parse_marker, rotation
from ultragist_rag.store.base import SOURCE
from ultragist_rag.store.shelf import Shelf


def test_no_entry_of_the_journal_is_written_over(text_engine, monkeypatch):
    monkeypatch.setattr(rotation, "_BATCH", 1)
    store = GistStore.open("memory://", secret="a secret of the tests, long enough")
    store.get_or_compress(text_engine, [f"text number {number}" for number in range(5)])
    old = store._shelf
    names = old.documents()
    assert names == sorted(parse_marker(marker) for marker in store)
    old.place.delete((old.key(names[0], SOURCE),))  # dropped, and not in the journal
    new = Shelf(old.place, old.namespace, b"another secret of the tests, as long")

    for last in (3, 2):

        def stop(done, _total, last=last):
            if done == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            rotation.rotate(old, new, drop=True, progress=stop)
    assert len(rotation.rotate(old, new, drop=True).markers) == 4
