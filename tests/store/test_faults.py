"""What happens when processes are killed, disks are full, files are damaged and servers vanish.

Nothing corrupt is ever returned, nothing acknowledged is lost, every error is one of ours.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from ultragist_rag.errors import CorruptGistError, StoreError
from ultragist_rag.store import GistStore
from ultragist_rag.store.base import open_bytes

SECRET = "a secret of the tests"

WRITE = """
import json, sys
from ultragist_rag.store.base import open_bytes

truth, place = open_bytes(sys.argv[1]), open_bytes(sys.argv[2], **json.loads(sys.argv[3]))
(folder,) = {path.name for path in truth.root.iterdir() if path.is_dir() and not path.name.startswith(".")}
memories = sorted(key for key, _ in truth.entries(folder) if key.endswith(".gist"))
print("ready", flush=True)
for key in memories:
    source = key.removesuffix(".gist") + ".source"
    place.put({source: truth.get(source), key: truth.get(key)})
    print(key.rpartition("/")[2].removesuffix(".gist"), flush=True)
"""

WORK = """
import hashlib, json, random, sys, threading
from ultragist_rag.store import disk
from ultragist_rag.store.base import open_bytes

disk._LOCK_SECONDS = 600.0  # sixteen writers take turns in no order
url, options, seed, steps, bound = sys.argv[1], json.loads(sys.argv[2]), *map(int, sys.argv[3:])
place = open_bytes(url, bound or None, **options)

def content(key, version):
    return b"".join(hashlib.sha256(f"{key} {version} {row}".encode()).digest() for row in range(1, 3 + version % 60))

def work(number):
    draw = random.Random(number)
    for step in range(steps):
        keys = ["ns/" + "abcdefgh"[draw.randrange(8)] + "abcdefgh"[draw.randrange(8)] + "a" * 24 for _ in range(2)]
        version = draw.randrange(1000)
        data = version.to_bytes(4, "big") + content(keys[0], version)
        place.put({keys[0] + kind: data for kind in (".source", ".gist")})
        for key in keys:
            data = place.get(key + ".gist")
            assert data is None or data[4:] == content(key, int.from_bytes(data[:4], "big")), key
        assert not bound or place.usage().n_bytes <= bound

threads = [threading.Thread(target=work, args=(seed * 100 + number,)) for number in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


@pytest.fixture(
    params=[
        "file",
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("s3", marks=pytest.mark.slow),
    ]
)
def new_place(request, tmp_path):
    """A function that returns URL and options of a new, empty place of a kind that processes share."""
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        return lambda number: (f"{url[:-1]}{number}", {})
    if request.param == "s3":
        url, options = request.getfixturevalue("s3_bucket")
        return lambda number: (f"{url}-{number}", options)
    return lambda number: (str(tmp_path / f"gists-{number}"), {})


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is of POSIX")
def test_a_process_killed_at_a_random_point_of_200_writes_loses_nothing_acknowledged(
    request, new_place, make_memory, same, tmp_path
):
    truth = GistStore.open(tmp_path / "truth", secret=SECRET)
    for number in range(200):
        truth.put(make_memory(number, slots=100), f"text {number}")
    draw = random.Random(5)
    counts = []
    for number in range(10 if "s3_bucket" not in request.fixturenames else 2):
        url, options = new_place(number)
        command = [sys.executable, "-c", WRITE, str(tmp_path / "truth"), url, json.dumps(options)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        acknowledged = [process.stdout.readline().strip() for _ in range(1 + draw.randrange(200))]
        time.sleep(draw.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        acknowledged += process.communicate()[0].split()  # a line that was cut off is none
        acknowledged = {name for name in acknowledged if len(name) == 26}
        store = GistStore.open(url, secret=SECRET, options=options)
        found = list(store)
        assert acknowledged <= {marker[10:-1] for marker in found}
        assert len(found) <= len(acknowledged) + 1
        for marker in found:
            assert same(store.get(marker), truth.get(marker))
            assert store.source(marker) == truth.source(marker)
        marker = store.put(make_memory(999), "one more")
        assert same(store.get(marker), make_memory(999))
        counts.append(len(found))
    assert min(counts) < 150
    assert max(counts) > 50


@pytest.mark.parametrize("bound", [pytest.param(0, id="free"), pytest.param(9000, id="bounded")])
def test_four_processes_with_four_threads_each_on_one_place(new_place, bound):
    url, options = new_place(0)
    alone = url.startswith("s3") and bound  # there, processes may exceed the bound by what they write at one moment
    command = [sys.executable, "-c", WORK, url, json.dumps(options)]
    rest = ["2" if options else "8", str(bound)]
    processes = [
        subprocess.Popen([*command, str(seed), *rest], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for seed in range(1 if alone else 4)
    ]
    assert [process.communicate() for process in processes] == [("", "")] * len(processes)
    place = open_bytes(url, bound or None, **options)
    sizes = dict(place.entries("ns"))
    assert place.usage().n_bytes in {sum(sizes.values()), sum(sizes.values()) + 20}
    assert len(sizes) > (1 if bound else 4)  # a bound leaves room for few, as it happens
    assert all(key.removesuffix("gist") + "source" in sizes for key in sizes if key.endswith("gist"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 512 KiB, and a way to make it read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder, lambda mode: subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], check=True)
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_refuses_what_is_new_and_keeps_what_was_stored(small_disk, make_memory, same):
    store = GistStore.open(small_disk[0] / "gists", secret=SECRET)
    markers = []

    def fill():
        for number in range(100):
            markers.append(store.put(make_memory(number, slots=50), f"text {number}"))  # noqa: PERF401

    with pytest.raises(StoreError, match=r"No space left on device.*see to the disk's space"):
        fill()
    assert 5 < len(markers) < 100
    assert sorted(store) == sorted(markers)
    for number, marker in enumerate(markers):
        assert same(store.get(marker), make_memory(number, slots=50))
    assert all(map(store.delete, markers[:3]))
    assert same(store.get(store.put(make_memory(200, slots=50), "later")), make_memory(200, slots=50))


def test_a_full_disk_takes_what_its_bound_makes_room_for(small_disk, make_memory, same):
    store = GistStore.open(small_disk[0] / "gists", secret=SECRET, max_bytes=300_000, keep_source=False)
    for number in range(60):
        marker = store.put(make_memory(number, slots=50), f"text {number}")
        assert same(store.get(marker), make_memory(number, slots=50))
    assert 5 < len(store) < 60


def test_a_read_only_folder_is_read_and_refuses_changes(small_disk, make_memory, same):
    folder, remount = small_disk
    marker = GistStore.open(folder / "gists", secret=SECRET).put(make_memory(), "text")
    remount("ro")
    for max_bytes in (None, 100_000):
        store = GistStore.open(folder / "gists", secret=SECRET, max_bytes=max_bytes)
        assert same(store.get(marker), make_memory())
        assert (store.source(marker).text, list(store), store.stats().n_memories) == ("text", [marker], 1)
        with pytest.raises(StoreError, match="Read-only file system"):
            store.put(make_memory(1), "new")
        with pytest.raises(StoreError, match="Read-only file system"):
            store.delete(marker)
    with pytest.raises(StoreError, match="cannot use"):
        GistStore.open(folder / "other", secret=SECRET)
    remount("rw")
    assert store.delete(marker)


def test_a_folder_without_permissions_is_told_of(tmp_path, make_memory):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    store = GistStore.open(tmp_path / "gists", secret=SECRET)
    marker = store.put(make_memory(), "text")
    folders = [path for path in (tmp_path / "gists").rglob("*") if path.is_dir()] + [tmp_path / "gists"]
    for path in folders:
        path.chmod(0o500)
    try:
        assert marker in store
        with pytest.raises(StoreError, match="Permission denied"):
            store.put(make_memory(1), "new")
    finally:
        for path in folders:
            path.chmod(0o700)


def damage(draw, data):
    """Return bytes that differ: bits flipped, cut off, overwritten, or more of them."""
    data = bytearray(data)
    at = draw.randrange(len(data))
    kind = draw.randrange(5)
    if kind == 0:
        for place in {draw.randrange(8 * len(data)) for _ in range(draw.randrange(1, 4))}:
            data[place // 8] ^= 1 << place % 8
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    elif kind == 3:
        data += draw.randbytes(draw.randrange(1, 50))
    else:
        del data[at : at + draw.randrange(1, 50)]
    return bytes(data)


@pytest.mark.slow
def test_of_2000_damaged_files_each_is_refused_or_as_it_was(tmp_path, make_memory, same):
    store = GistStore.open(tmp_path / "gists", secret=SECRET)
    wanted = [
        store.put(make_memory(1), "text"),
        *(store.put(make_memory(2), "t", quantise=kind) for kind in ("int8", "int4")),
    ]
    store.records.put("page", {"first": {"turns": ["hello", "world"]}})
    memories = {marker: store.get(marker) for marker in wanted}
    source = store.source(wanted[0])
    reads = {"source": (lambda: store.source(wanted[0]), lambda found: found == source)}
    reads["record"] = (lambda: store.records.get("page", "first"), lambda found: found == {"turns": ["hello", "world"]})
    for marker in wanted:
        reads[marker[10:-1]] = (
            lambda marker=marker: store.get(marker),
            lambda found, one=memories[marker]: same(found, one),
        )
    files = {
        path: path.read_bytes() for path in (tmp_path / "gists").rglob("*.*") if path.suffix in {".gist", ".record"}
    }
    files |= {path: path.read_bytes() for path in (tmp_path / "gists").rglob(f"{wanted[0][10:-1]}.source")}
    assert len(files) == 5
    draw = random.Random(11)
    n_refused = 0
    for _ in range(2000):
        path = draw.choice(list(files))
        read, is_same = reads[path.suffix[1:] if path.suffix != ".gist" else path.stem]
        path.write_bytes(damage(draw, files[path]))
        try:
            assert is_same(read())
        except CorruptGistError:
            n_refused += 1
        path.write_bytes(files[path])
        assert is_same(read())
    assert n_refused > 1900


class Writers:
    """Threads that write and read until they are stopped, and note what was acknowledged."""

    def __init__(self, place):
        self.place = place
        self.stored, self.failed, self.others = {}, [], []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(8)]
        for thread in self._threads:
            thread.start()

    def _work(self, number):
        draw = random.Random(number)
        while not self._stop.is_set():
            key = "ns/" + "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=26))
            data = draw.randbytes(100)
            try:
                self.place.put({f"{key}.source": data, f"{key}.gist": data})
                self.stored[f"{key}.gist"] = data
                assert self.place.get(f"{key}.gist") == data
            except StoreError:
                self.failed.append(number)
            except BaseException as error:  # shown by an assertion of the test
                self.others.append(error)
                return

    def wait_for_more(self, things):
        before = len(things)
        while len(things) < before + 10 and not self.others:
            time.sleep(0.01)

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.redis
def test_redis_gone_in_mid_use_loses_nothing_acknowledged(make_redis):
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    server = make_redis("--appendonly", "yes", "--appendfsync", "always")
    place = open_bytes(server.url, retry=Retry(NoBackoff(), 1))
    writers = Writers(place)
    for _ in range(3):
        writers.wait_for_more(writers.stored)
        server.kill()
        writers.wait_for_more(writers.failed)
        server.start()
    writers.wait_for_more(writers.stored)
    writers.stop()
    assert writers.others == []
    assert all(place.get(key) == data for key, data in writers.stored.items())
    assert place.usage().n_bytes == 100 * len(list(place.entries("ns")))
