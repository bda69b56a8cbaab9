"""What Redis promises beyond what every byte store does, and what happens when it is gone."""

import datetime
import ipaddress
import socket
import subprocess
import sys
import threading

import pytest
from patience import until

from ultragist_rag.errors import InputError, StoreError
from ultragist_rag.store import GistStore
from ultragist_rag.store.base import GIST, RECORD, SOURCE, open_bytes
from ultragist_rag.store.keys import ENVIRONMENT

redis = pytest.importorskip("redis")
pytestmark = pytest.mark.redis
DAY = datetime.timedelta(days=1)


def key(number, ending=GIST, folder="ns"):
    digits = "abcdefghijklmnopqrstuvwxyz234567"
    return f"{folder}/{digits[number // 32]}{digits[number % 32]:a<25}{ending}"


def never_again():
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return Retry(NoBackoff(), 1)


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield client


def test_a_server_that_is_gone_is_told_of_and_used_again_when_it_is_back(make_redis):
    server = make_redis("--appendonly", "yes", "--appendfsync", "always")
    place = open_bytes(server.url, 1000, retry=never_again())
    place.put({key(0, SOURCE): b"text", key(0): bytes(300)})
    server.kill()
    calls = {
        "get": lambda: place.get(key(0)),
        "head": lambda: place.head(key(0), 3),
        "put": lambda: place.put({key(1): b"x"}),
        "delete": lambda: place.delete((key(0),)),
        "contains": lambda: place.contains(key(0)),
        "entries": lambda: list(place.entries("ns")),
        "usage": place.usage,
        "open": lambda: open_bytes(server.url, retry=never_again()),
    }
    for call in calls.values():
        with pytest.raises(StoreError, match=r"redis://127.0.0.1:\d+/0 failed: .*try again"):
            call()
    server.start()
    assert dict(place.entries("ns")) == {key(0, SOURCE): 4, key(0): 300}
    assert place.get(key(0)) == bytes(300)
    place.put({key(1): bytes(800)})
    assert [place.contains(name) for name in (key(0), key(0, SOURCE), key(1))] == [False, True, True]


def test_an_answer_that_never_comes_is_told_of(make_redis):
    server = make_redis()
    place = open_bytes(server.url, retry=never_again(), socket_timeout=1.0)
    with redis.Redis.from_url(server.url) as client:
        client.client_pause(60_000)
        with pytest.raises(StoreError, match=r"[Tt]imeout"):
            place.put({key(0): b"x"})


def test_passwords_are_checked_and_never_shown(make_redis):
    server = make_redis("--requirepass", "right-secret")
    with_password = server.url.replace("//", "//:{}@")
    open_bytes(with_password.format("right-secret")).put({key(0): b"x"})
    assert open_bytes(server.url, password="right-secret").contains(key(0))
    for url in (with_password.format("wrong-secret"), f"{server.url}?password=wrong-secret", server.url):
        with pytest.raises(StoreError) as caught:
            open_bytes(url)
        assert "-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "options"), [("redis://h:x", {}), ("redis://h/0?db=x", {}), ("redis://127.0.0.1:1", {"nosuch": 1})]
)
def test_a_bad_url_or_option_is_refused(url, options):
    with pytest.raises(InputError, match="cannot be opened"):
        open_bytes(url, **options)


def test_a_store_shared_over_a_network_needs_a_secret(redis_url, monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(StoreError, match="pass secret="):
        GistStore.open(redis_url)


def test_a_socket_of_unix_is_a_way_to_the_same_store(redis_server, redis_url):
    open_bytes(redis_url).put({key(0): b"x"})
    code = (
        "import sys; from ultragist_rag.store.base import open_bytes; print(open_bytes(sys.argv[1]).get(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, f"unix://{redis_server.socket}", key(0)]  # no such sockets in these tests
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "b'x'\n"


@pytest.fixture
def certificate(tmp_path):
    """Files of a certificate for loopback that signs itself, and of its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + DAY)
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = builder.add_extension(loopback, critical=False).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(pem))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(pem, *plain))
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def test_tls_is_used_and_the_server_is_checked(make_redis, certificate):
    files = ["--tls-cert-file", str(certificate[0]), "--tls-key-file", str(certificate[1]), "--tls-auth-clients", "no"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    make_redis("--tls-port", str(port), *files)
    place = open_bytes(f"rediss://127.0.0.1:{port}/0", ssl_ca_certs=str(certificate[0]))
    place.put({key(0): b"x"})
    assert place.get(key(0)) == b"x"
    with pytest.raises(StoreError, match="certificate verify failed"):
        open_bytes(f"rediss://127.0.0.1:{port}/0", retry=never_again())


def test_databases_are_stores_of_their_own_and_values_of_others_are_left_alone(redis_url, client):
    client.set("somebody's", b"value")
    place, other = open_bytes(redis_url, 100), open_bytes(f"{redis_url[:-1]}1", 100)
    place.put({key(0): bytes(90)})
    other.put({key(1): bytes(90)})
    place.put({key(2): bytes(90)})
    assert [list(one.entries("ns")) for one in (place, other)] == [[(key(2), 90)], [(key(1), 90)]]
    assert client.get("somebody's") == b"value"
    for one in (place, other):
        one.delete((key(1), key(2)))
    assert {name.decode() for name in client.scan_iter()} == {"somebody's", "ultragist:bytes", "ultragist:clock"}


def test_what_redis_dropped_by_itself_is_missing_and_counted_no_more(redis_url, client):
    place = open_bytes(redis_url, 1000)
    place.put({key(0): bytes(500), key(1): bytes(400)})
    client.delete(f"ultragist:{key(0)}")
    assert (place.contains(key(0)), place.head(key(0), 3), place.get(key(0))) == (False, None, None)
    assert (place.usage().n_bytes, list(place.entries("ns"))) == (400, [(key(1), 400)])


def test_a_full_server_refuses_what_is_new_and_can_be_read(make_redis):
    server = make_redis("--maxmemory-policy", "noeviction")
    place = open_bytes(server.url, retry=never_again())
    place.put({key(0, SOURCE): b"old text", key(0): bytes(1000)})
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 1000)
        with pytest.raises(StoreError, match="maxmemory"):
            place.put({key(0, SOURCE): b"new text", key(1): bytes(1000)})
        assert place.get(key(0, SOURCE)) == b"old text"
        assert (place.usage().n_bytes, place.contains(key(1))) == (1008, False)
        client.config_set("maxmemory", 0)
    place.put({key(1): bytes(1000)})
    assert place.usage().n_bytes == 2008


def test_many_are_evicted_for_one_in_order_of_use_by_two_clients(redis_url):
    one, other = (open_bytes(redis_url, 5000) for _ in range(2))
    for number in range(500):
        (one, other)[number % 2].put({key(number): bytes(10)})
    for number in (3, 250, 4):
        other.get(key(number))
    one.put({key(600, RECORD): bytes(4950)})
    assert sorted(name for name, _ in one.entries("ns")) == sorted(
        [key(number) for number in (498, 499, 3, 250, 4)] + [key(600, RECORD)]
    )
    assert (one.usage().n_evicted, other.usage().n_evicted) == (495, 0)


def test_readers_see_a_put_as_a_whole_or_not_at_all(redis_url, client):
    place = open_bytes(redis_url, 600_000)
    place.put({key(0, SOURCE): bytes(4), key(0): bytes(100_000)})
    done = threading.Event()
    seen = []

    def read():
        while not done.is_set():
            seen.append(client.mget(f"ultragist:{key(0, SOURCE)}", f"ultragist:{key(0)}"))

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: seen)
    for version in range(1, 100):
        place.put({key(0, SOURCE): bytes([version]) * 4, key(0): bytes([version]) * 100_000})
    until(lambda: seen[-1][0] == bytes([99]) * 4)
    done.set()
    reader.join()
    assert len({text for text, _ in seen}) > 1
    assert all(data == text[:1] * 100_000 for text, data in seen)
