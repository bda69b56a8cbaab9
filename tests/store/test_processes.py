"""Several processes on one folder, some of them killed."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from ultragist_rag.store.disk import DiskBytes

WORK = """
import hashlib, random, sys, threading
from pathlib import Path
from ultragist_rag.store import disk
from ultragist_rag.store.disk import DiskBytes

root, seed, steps, bound = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
place = DiskBytes(root, bound or None)
real, largest = disk._write_file, [0]
disk._LOCK_SECONDS = 600.0  # sixteen writers take turns in no order

def write_and_count(path, data):
    real(path, data)
    largest[0] = max(largest[0], sum(path.stat().st_size for path in Path(root).rglob("*") if path.is_file()))

if bound:
    disk._write_file = write_and_count

def content(key, version):
    return b"".join(hashlib.sha256(f"{key} {version} {row}".encode()).digest() for row in range(1, 3 + version % 60))

def work(number):
    draw = random.Random(number)
    for step in range(steps):
        key = "ns/" + "abcdefgh"[draw.randrange(8)] + "abcdefgh"[draw.randrange(8)] + "a" * 24 + ".gist"
        version = draw.randrange(1000)
        place.put({key: version.to_bytes(4, "big") + content(key, version)})
        print(key, flush=True)
        for other in (key, "ns/" + "abcdefgh"[draw.randrange(8)] + "a" * 25 + ".gist"):
            data = place.get(other)
            assert data is None or data[4:] == content(other, int.from_bytes(data[:4], "big")), other
        if bound and step % 6 == 0:
            place.delete((key,))

threads = [threading.Thread(target=work, args=(seed * 100 + number,)) for number in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(largest[0])
"""


def start(root, seed, steps, bound):
    command = [sys.executable, "-c", WORK, str(root), str(seed), str(steps), str(bound)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def is_whole(key, data):
    version = int.from_bytes(data[:4], "big")
    rows = (hashlib.sha256(f"{key} {version} {row}".encode()).digest() for row in range(1, 3 + version % 60))
    return data[4:] == b"".join(rows)


def test_four_processes_with_four_threads_each_on_one_folder(tmp_path):
    """The writers count, in the lock and while their drafts lie beside everything else.

    Nobody else can: a file that is renamed or replaced while the folder is walked is seen twice.
    """
    bound = 12_000
    running = [start(tmp_path, seed, 12, bound) for seed in range(4)]
    outputs = [process.communicate() for process in running]
    assert [errors for _, errors in outputs] == [""] * 4
    assert [process.returncode for process in running] == [0] * 4
    largest = max(int(output.splitlines()[-1]) for output, _ in outputs)
    assert 0.9 * bound < largest <= bound
    place = DiskBytes(str(tmp_path), bound)
    kept = [key for key, _ in place.entries("ns")]
    assert kept
    assert all(is_whole(key, place.get(key)) for key in kept)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is of POSIX")
def test_a_process_killed_in_mid_write_loses_nothing_that_it_was_told_is_stored(tmp_path):
    random.seed(3)
    acknowledged = set()
    for seed in range(8):
        process = start(tmp_path, seed, 10_000, 0)
        first = process.stdout.readline().strip()
        time.sleep(random.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].splitlines()
        acknowledged |= {key for key in [first, *rest] if key.endswith(".gist")}
        place = DiskBytes(str(tmp_path))
        assert all(is_whole(key, place.get(key)) for key, _ in place.entries("ns"))
        assert all(place.contains(key) for key in acknowledged)
    place.put({"ns/" + "z" * 26 + ".gist": b"x"})
    assert list((tmp_path / ".tmp").iterdir()) == []
    assert int((tmp_path / ".usage").read_bytes()) == sum(size for _, size in place.entries("ns"))


def test_the_byte_level_imports_no_torch():
    code = (
        "import sys\n"
        "import ultragist_rag.store\n"
        "from ultragist_rag.store import adapted_bytes, base, disk, eviction, keys, memory_bytes, redis_bytes\n"
        "from ultragist_rag.store import remote_bytes, refs, reports, seal, source\n"
        "base.open_bytes('memory://')\n"
        "heavy = {'torch', 'transformers', 'numpy', 'safetensors', 'redis', 'fsspec', 'langchain'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
