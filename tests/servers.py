"""Servers that tests start on loopback: Redis, and one that speaks S3. Without their programs, tests are skipped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest


class RedisServer:
    """Debian's redis-server, without a configuration file; what it acknowledged is on disk."""

    def __init__(self, folder: Path, *settings: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.socket = folder / "redis.sock"
        self.url = f"redis://127.0.0.1:{self.port}/0"
        where = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--unixsocket",
            str(self.socket),
            "--dir",
            str(folder),
        ]
        self._command = ["redis-server", *where, "--save", "", *settings]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines = []
        for line in process.stdout or ():
            lines.append(line)
            if "Ready to accept connections" in line:
                self._process = process
                return
        raise RuntimeError(f"redis-server did not start:\n{''.join(lines)}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.communicate()
            self._process = None


def _started(folders: pytest.TempPathFactory, *settings: str) -> RedisServer:
    for more_tries in reversed(range(5)):  # somebody else may take the port meanwhile
        server = RedisServer(folders.mktemp("redis"), *settings)
        try:
            server.start()
        except RuntimeError:
            if not more_tries:
                raise
        else:
            break
    return server


@pytest.fixture
def make_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RedisServer]]:
    """Start servers that are the test's own."""
    _need_redis()
    servers = []

    def make(*settings: str) -> RedisServer:
        servers.append(_started(tmp_path_factory, *settings))
        return servers[-1]

    yield make
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    _need_redis()
    server = _started(tmp_path_factory)
    yield server
    server.kill()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """An empty database."""
    from redis import Redis

    with Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


def _need_redis() -> None:
    """Skip a test without Redis; where ULTRAGIST_TESTS_NEED says so, fail it."""
    missing = [] if shutil.which("redis-server") else ["redis-server (apt-get install redis-server)"]
    missing += [] if find_spec("redis") else ["redis-py (pip install 'ultragist-rag[redis]')"]
    if missing:
        stop = pytest.fail if "redis" in os.environ.get("ULTRAGIST_TESTS_NEED", "").split(",") else pytest.skip
        stop(f"not installed: {' and '.join(missing)}")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'ultragist-rag[s3]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[s3,server]'")
        server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


_buckets = count()


@pytest.fixture
def s3_bucket(s3_server: str) -> tuple[str, dict[str, Any]]:
    """URL of an empty bucket, and the options it is opened with."""
    bucket = f"bucket-{next(_buckets)}"
    make_bucket(s3_server, bucket)
    return f"s3://{bucket}/gists", s3_options(s3_server)


def make_bucket(endpoint: str, name: str) -> None:
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")).close()


def s3_options(endpoint: str) -> dict[str, Any]:
    return {
        "key": "of-the-tests",
        "secret": "of-the-tests",
        "endpoint_url": endpoint,
        "client_kwargs": {"region_name": "us-east-1"},
    }
