"""What places behind fsspec promise beyond what every byte store does, most of it against a server that speaks S3."""

import json
import warnings

import pytest
from servers import make_bucket, s3_options

from ultragist_rag.errors import InputError, StoreError
from ultragist_rag.store import GistStore
from ultragist_rag.store.base import GIST, RECORD, SOURCE, open_bytes
from ultragist_rag.store.keys import ENVIRONMENT
from ultragist_rag.store.remote_bytes import RemoteBytes

fsspec = pytest.importorskip("fsspec")


def key(number, ending=GIST, folder="ns"):
    digits = "abcdefghijklmnopqrstuvwxyz234567"
    return f"{folder}/{digits[number // 32]}{digits[number % 32]:a<25}{ending}"


@pytest.fixture
def open_s3(s3_bucket):
    url, options = s3_bucket
    return lambda max_bytes=None: open_bytes(url, max_bytes, **options)


@pytest.fixture
def s3_files(s3_bucket):
    """The bucket, to look into it from outside."""
    files = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False, **s3_bucket[1])
    return lambda: sorted(path.partition("/gists/")[2] for path in files.find(s3_bucket[0]))


def test_objects_lie_under_the_prefix_by_the_names_of_their_keys(open_s3, s3_files):
    place = open_s3()
    place.put({key(0, SOURCE): b"text", key(0): b"memory", key(0, RECORD): b"chat"})
    assert s3_files() == sorted([key(0, SOURCE), key(0), key(0, RECORD)])
    place.put({key(1): b"x"}, quota=100)
    assert len(s3_files()) == 5  # the index, too


def test_what_others_write_and_delete_is_seen_at_once(open_s3):
    one, other = open_s3(), open_s3()
    assert (list(one.entries("ns")), one.contains(key(0)), one.get(key(0))) == ([], False, None)
    other.put({key(0): b"x"})
    assert (list(one.entries("ns")), one.contains(key(0)), one.get(key(0))) == ([(key(0), 1)], True, b"x")
    other.delete((key(0),))
    assert (list(one.entries("ns")), one.contains(key(0)), one.get(key(0))) == ([], False, None)


def test_a_bucket_that_is_not_there_is_told_of_and_never_made(s3_bucket):
    options = s3_bucket[1]
    place = open_bytes("s3://no-such-bucket/x", **options)
    with pytest.raises(StoreError, match=r"no-such-bucket.*does not exist"):
        place.put({key(0): b"x"})
    assert not fsspec.filesystem("s3", skip_instance_cache=True, **options).exists("no-such-bucket")


def test_a_server_that_is_gone_is_told_of_and_used_again_when_it_is_back():
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
    host, port = server.get_host_and_port()
    options = s3_options(f"http://{host}:{port}") | {"config_kwargs": {"retries": {"max_attempts": 0}}}
    make_bucket(f"http://{host}:{port}", "bucket-that-stays")
    place = open_bytes("s3://bucket-that-stays/x", 1000, **options)
    place.put({key(0): b"x"})
    server.stop()
    calls = (
        lambda: place.get(key(0)),
        lambda: place.put({key(1): b"y"}),
        lambda: place.delete((key(0),)),
        lambda: place.contains(key(0)),
        lambda: list(place.entries("ns")),
        place.usage,
    )
    for call in calls:
        with pytest.raises(StoreError, match=r"s3://bucket-that-stays/x failed: .*try again"):
            call()
    server = moto.ThreadedMotoServer(ip_address=host, port=port, verbose=False)
    server.start()
    try:
        place.put({key(1): b"y"})
        assert (place.get(key(0)), place.get(key(1))) == (b"x", b"y")  # moto remembers what it held
    finally:
        server.stop()


def test_folders_are_made_where_a_place_has_some(tmp_path):
    place = open_bytes(f"file+fsspec://{tmp_path}/below/gists", 1000)
    place.put({key(0): b"x"})
    assert (tmp_path / "below/gists" / key(0)).read_bytes() == b"x"
    assert open_bytes(f"file+fsspec://{tmp_path}/below/gists").get(key(0)) == b"x"


@pytest.mark.parametrize("url", ["s3://", "memory+fsspec://", "memory+fsspec:///"])
def test_a_url_without_a_place_is_refused(url):
    with pytest.raises(InputError, match="names no place"):
        open_bytes(url)


def test_options_that_a_scheme_does_not_know_are_refused():
    with pytest.raises(InputError, match="cannot be opened"):
        open_bytes("github://org:repo@main/x", nosuch=1)


def test_a_remote_store_needs_a_secret(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(StoreError, match="pass secret="):
        GistStore.open("memory+fsspec://secretless")


@pytest.fixture
def open_memory(request):
    """A place in the memory of fsspec, and its files."""
    files = fsspec.filesystem("memory", skip_instance_cache=True)
    root = f"/{request.node.name}"
    return lambda max_bytes=None: RemoteBytes(files, root, "memory", max_bytes)


class Refusing:
    """A file system of fsspec that refuses to write some names."""

    def __init__(self, files, ending):
        self.files, self.ending = files, ending

    def __getattr__(self, name):
        return getattr(self.files, name)

    def pipe_file(self, path, data):
        if path.endswith(self.ending):
            raise PermissionError("AccessDenied")
        self.files.pipe_file(path, data)


@pytest.mark.parametrize("max_bytes", [None, 1000])
def test_a_put_that_is_refused_half_way_leaves_what_was_there(open_memory, max_bytes):
    place = open_memory(max_bytes)
    place.put({key(0, SOURCE): b"known"})
    place._files = Refusing(place._files, GIST)
    for number in range(2):
        with pytest.raises(StoreError, match=r"PermissionError: AccessDenied.*your rights"):
            place.put({key(number, SOURCE): b"known", key(number): b"memory"})
    assert dict(place.entries("ns")) == {key(0, SOURCE): 5}


def test_an_index_that_cannot_be_written_does_not_lose_the_put(open_memory):
    place = open_memory(1000)
    place._files = Refusing(place._files, ".json")
    place.put({key(0): b"x"})
    assert place.get(key(0)) == b"x"


@pytest.mark.parametrize("index", [b"", b"not json", b"[1]", b'{"ns/a":3}', b'{"ns/a":["x",1]}', b"null", b"\xff"])
def test_an_index_that_cannot_be_read_is_made_anew(open_memory, index):
    place = open_memory(250)
    place.put({key(0): bytes(100)})
    place._write({"ultragist-index.json": index})
    again = open_memory(250)
    again.put({key(1): bytes(100)})
    again.put({key(2): bytes(100)})
    assert [again.contains(key(number)) for number in range(3)] == [False, True, True]
    assert sorted(json.loads(again._read("ultragist-index.json", None))) == [key(1), key(2)]


def test_the_order_of_use_is_shared_with_the_next_put(open_memory):
    one, other = open_memory(350), open_memory(350)
    for number in range(3):
        one.put({key(number): bytes(100)})
    other.get(key(0))
    other.put({key(3): bytes(100)})  # evicts 1, and tells that 0 was used
    one.put({key(4): bytes(100)})
    assert [one.contains(key(number)) for number in range(5)] == [True, False, False, True, True]


def test_what_no_index_tells_of_is_counted_and_goes_first(open_memory):
    place = open_memory(350)
    place.put({key(0): bytes(100)})
    open_memory().put({key(1): bytes(200)})
    assert place.usage().n_bytes == 300
    place.put({key(2): bytes(100)})
    assert [place.contains(key(number)) for number in range(3)] == [True, False, True]


def test_objects_of_others_are_left_alone(open_memory):
    place = open_memory(150)
    place._files.pipe_file(f"{place._root}/ns/README.txt", bytes(1000))
    place.put({key(0): bytes(100)})
    place.put({key(1): bytes(100)})
    assert [name for name, _ in place.entries("ns")] == [key(1)]
    assert place._files.exists(f"{place._root}/ns/README.txt")


def test_a_folder_whose_name_begins_like_another_is_another(open_memory):
    place = open_memory()
    place.put({key(0, folder="ns-a"): b"x"})
    place.put({key(0, folder="ns"): b"x"})
    assert [name for name, _ in place.entries("ns")] == [key(0)]
