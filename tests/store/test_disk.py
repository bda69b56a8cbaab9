"""What the folder promises beyond what every byte store does."""

import errno
import os
import subprocess
import sys
import threading
import time

import pytest
from filelock import FileLock

from ultragist_rag.errors import InputError, StoreError
from ultragist_rag.store import disk
from ultragist_rag.store.base import GIST, SOURCE, open_bytes


def key(number, ending=GIST, folder="ns"):
    digits = "abcdefghijklmnopqrstuvwxyz234567"
    return f"{folder}/{digits[number // 32]}{digits[number % 32]:a<25}{ending}"


def files_in(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


def bytes_in(root):
    return sum(path.stat().st_size for path in files_in(root))


@pytest.fixture
def folder(tmp_path):
    return disk.DiskBytes(str(tmp_path / "bytes"))


@pytest.mark.parametrize(
    "name", ["../x.gist", "ns/../../x.gist", "/etc/passwd", "ns/short.gist", "ns/" + "a" * 26, "", "NS/x"]
)
def test_a_folder_never_follows_a_key_out_of_itself(folder, name, tmp_path):
    with pytest.raises(InputError):
        folder.put({name: b"x"})
    assert folder.get(name) is None
    assert not folder.contains(name)
    assert folder.delete((name,)) == 0
    assert files_in(tmp_path) == []


def test_files_and_folders_are_for_their_owner_only(folder):
    folder.put({key(0): b"x", key(0, SOURCE): b"y"})
    modes = {path.stat().st_mode & 0o777 for path in folder.root.rglob("*")}
    assert modes == {0o600, 0o700}


def test_what_a_killed_writer_left_is_swept_and_counted_anew(folder, tmp_path):
    folder.put({key(0): bytes(100)})
    (folder.root / ".tmp" / "0").write_bytes(bytes(300))
    (folder.root / ".usage").write_bytes(b"?" * 20)
    again = disk.DiskBytes(str(folder.root), 500)
    assert again.get(key(0)) == bytes(100)
    again.put({key(1): bytes(300)})
    assert bytes_in(tmp_path) == 100 + 300 + 20
    assert int((folder.root / ".usage").read_bytes()) == 400


@pytest.mark.parametrize("note", [b"", b"nonsense", b"?" * 20, None])
def test_a_total_that_cannot_be_read_is_counted_anew(folder, note):
    folder.put({key(0): bytes(100)})
    path = folder.root / ".usage"
    path.unlink() if note is None else path.write_bytes(note)
    folder.put({key(1): bytes(10)})
    assert int(path.read_bytes()) == 110


def test_files_added_by_hand_count_after_the_next_opening(folder, tmp_path):
    folder.put({key(0): bytes(100)})
    (folder.root / key(1)).write_bytes(bytes(900))
    again = disk.DiskBytes(str(folder.root), 1000)
    again.put({key(2): bytes(500)})
    assert bytes_in(tmp_path) <= 1000
    assert again.contains(key(2))


def test_files_of_others_are_left_alone(folder, tmp_path):
    folder.put({key(0): bytes(100)})
    strange = folder.root / "ns" / "README.txt"
    strange.write_text("keep me")
    again = disk.DiskBytes(str(folder.root), 150)
    again.put({key(1): bytes(100)})
    assert strange.read_text() == "keep me"
    assert [name for name, _ in again.entries("ns")] == [key(1)]


def failing(code):
    def fail(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("broken", ["fsync", "utime"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_failed_write_leaves_everything_as_it_was(folder, monkeypatch, broken, code):
    folder.put({key(0): b"old"})
    with monkeypatch.context() as patch:
        patch.setattr(os, broken, failing(code))
        with pytest.raises(StoreError, match=os.strerror(code)):
            folder.put({key(0): b"newer", key(1): b"x"})
    assert folder.get(key(0)) == b"old"
    assert not folder.contains(key(1))
    assert list((folder.root / ".tmp").iterdir()) == []
    folder.put({key(0): b"newer"})
    assert (folder.get(key(0)), int((folder.root / ".usage").read_bytes())) == (b"newer", 5)


def test_a_write_that_stops_half_way_leaves_nothing(tmp_path):
    code = (
        "import sys, resource\n"
        "from ultragist_rag.store.disk import DiskBytes\n"
        "from ultragist_rag.errors import StoreError\n"
        "place = DiskBytes(sys.argv[1]); place.put({sys.argv[2]: b'small'})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: place.put({sys.argv[3]: bytes(100_000)})\n"
        "except StoreError as error: print(error)\n"
        "place.put({sys.argv[3]: b'fits'})\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), key(0), key(1)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert os.strerror(errno.EFBIG) in told
    place = disk.DiskBytes(str(tmp_path))
    assert (place.get(key(0)), place.get(key(1))) == (b"small", b"fits")


def test_a_store_that_can_only_be_read_is_read(folder, monkeypatch):
    folder.put({key(0): b"x"})
    monkeypatch.setattr(os, "utime", failing(errno.EROFS))
    real = os.open

    def read_only(path, flags, *rest, **more):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", read_only)
    again = disk.DiskBytes(str(folder.root), 1000)
    assert again.get(key(0)) == b"x"
    for change in (lambda: again.put({key(1): b"y"}), lambda: again.delete((key(0),))):
        with pytest.raises(StoreError, match="Read-only"):
            change()
    assert dict(again.entries("ns")) == {key(0): 1}


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="cannot use"):
            open_bytes(path)


def test_a_folder_that_cannot_be_looked_into_is_told_of(folder, monkeypatch):
    folder.put({key(0): b"x"})
    for name, call in {
        "stat": lambda: folder.contains(key(0)),
        "scandir": lambda: list(folder.entries("ns")),
        "open": folder.usage,
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing(errno.EACCES))
            with pytest.raises(StoreError, match="Permission denied"):
                call()


def test_a_folder_that_vanished_is_made_again(folder):
    folder.put({key(0): b"x"})
    for path in sorted(folder.root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.root.rmdir()
    assert folder.get(key(0)) is None
    assert (list(folder.entries("ns")), folder.usage().n_bytes) == ([], 20)
    folder.put({key(1): b"y"})
    assert folder.get(key(1)) == b"y"


def test_a_writer_that_never_ends_is_told_of(folder, monkeypatch):
    folder.put({key(0): b"x"})
    monkeypatch.setattr(disk, "_LOCK_SECONDS", 0.05)
    held = threading.Event()
    done = threading.Event()

    def hold():
        with FileLock(folder.root / ".lock"):
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    try:
        with pytest.raises(StoreError, match="another process has held"):
            folder.put({key(1): b"y"})
        assert folder.get(key(0)) == b"x"
    finally:
        done.set()
        thread.join()


def test_eviction_in_order_of_use_across_two_objects_on_one_folder(tmp_path):
    one, other = (disk.DiskBytes(str(tmp_path), 520) for _ in range(2))
    for number in range(5):
        (one, other)[number % 2].put({key(number): bytes(100)})
    one.put({key(5): bytes(100)})  # evicts 0; `one` now has a list of the rest
    other.get(key(1))
    other.get(key(2))
    one.put({key(6): bytes(100)})
    one.put({key(7): bytes(100)})
    assert [number for number in range(8) if one.contains(key(number))] == [1, 2, 5, 6, 7]


def test_many_small_memories_are_evicted_without_counting_all_each_time(tmp_path, monkeypatch):
    place = disk.DiskBytes(str(tmp_path), 20 + 50 * 10)
    scans = []
    real = disk.DiskBytes._scan_all
    monkeypatch.setattr(disk.DiskBytes, "_scan_all", lambda self: scans.append(time.time()) or real(self))
    for number in range(120):
        place.put({key(number): bytes(10)})
    assert [number for number in range(120) if place.contains(key(number))] == list(range(70, 120))
    assert len(scans) < 5
