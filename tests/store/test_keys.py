"""Secrets: which one counts, and who may read the key file."""

import logging
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import platformdirs
import pytest

from ultragist_rag.errors import InputError, StoreError
from ultragist_rag.store import GistStore
from ultragist_rag.store.keys import ENVIRONMENT, Keys, find_secret


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(platformdirs, "user_config_dir", lambda *_, **__: str(tmp_path / "config" / "ultragist-rag"))
    return tmp_path / "config" / "ultragist-rag"


def test_the_argument_counts_before_the_environment_and_that_before_the_rest(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "from the environment")
    assert find_secret("from the argument", "required") == b"from the argument"
    assert find_secret(b"\0" * 16, "keyfile") == b"\0" * 16
    for source in ("process", "keyfile", "required"):
        assert find_secret(None, source) == b"from the environment"


def test_a_process_has_one_random_secret_and_another_process_another():
    code = "from ultragist_rag.store.keys import find_secret; print(find_secret(None, 'process').hex())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    mine = find_secret(None, "process")
    assert mine == find_secret(None, "process")
    assert len(mine) == 32
    assert mine.hex() != other


def test_the_key_file_is_made_once_and_only_its_owner_can_read_it(home):
    secret = find_secret(None, "keyfile")
    assert find_secret(None, "keyfile") == secret
    assert len(secret) == 32
    assert stat.S_IMODE((home / "secret.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert [path.name for path in home.iterdir()] == ["secret.key"]


def test_threads_that_start_together_agree_on_one_key(home):
    for _ in range(10):
        with ThreadPoolExecutor(16) as pool:
            assert len(set(pool.map(lambda _: find_secret(None, "keyfile"), range(16)))) == 1
        assert [path.name for path in home.iterdir()] == ["secret.key"]
        (home / "secret.key").unlink()


def test_processes_that_start_together_agree_on_one_key(tmp_path):
    code = (
        "import platformdirs, sys; platformdirs.user_config_dir = lambda *_, **__: sys.argv[1];"
        "from ultragist_rag.store.keys import find_secret; sys.stdin.read(1); print(find_secret(None, 'keyfile').hex())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "shared")]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in running:
        process.stdin.write("x")
        process.stdin.flush()
    assert len({process.communicate()[0] for process in running}) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_file_that_others_can_read_is_refused(home, mode):
    find_secret(None, "keyfile")
    (home / "secret.key").chmod(mode)
    with pytest.raises(StoreError, match="chmod 600"):
        find_secret(None, "keyfile")


@pytest.mark.parametrize("content", ["", "abc", "0" * 62, "not hexadecimal" * 5, "\u00e9"])
def test_a_damaged_key_file_is_refused(home, content):
    find_secret(None, "keyfile")
    (home / "secret.key").write_text(content, encoding="utf-8")
    with pytest.raises(StoreError, match="does not hold 32 bytes"):
        find_secret(None, "keyfile")


def test_a_config_folder_that_cannot_be_made_is_a_store_error(tmp_path, home):
    (tmp_path / "config").write_text("a file where a folder should be")
    with pytest.raises(StoreError, match=ENVIRONMENT):
        find_secret(None, "keyfile")


def test_a_remote_store_without_a_secret_is_refused():
    with pytest.raises(StoreError, match=ENVIRONMENT):
        find_secret(None, "required")


def test_an_empty_secret_is_refused_and_a_short_one_is_warned_about(caplog):
    with pytest.raises(InputError, match="empty"):
        find_secret("", "process")
    with pytest.raises((InputError, TypeError), match=r"text or bytes|given"):
        find_secret(32, "process")  # 32 zero bytes, if it were taken as bytes
    with caplog.at_level(logging.WARNING):
        assert find_secret("short", "process") == b"short"
    assert "5 bytes" in caplog.text
    assert "short" not in caplog.text


def test_keys_differ_by_purpose_namespace_and_secret():
    keys = [Keys(secret, name) for secret in (b"one", b"two") for name in ("a", "b")]
    made = [value for key in keys for value in (key.ids, key.files, key.tag)]
    assert len(set(made)) == len(made)


def test_a_directory_store_finds_its_memories_again_with_the_key_file(tmp_path, make_memory, same):
    marker = GistStore.open(tmp_path / "gists").put(make_memory(), "text")
    assert same(GistStore.open(tmp_path / "gists").get(marker), make_memory())
