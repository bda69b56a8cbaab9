import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from ultragist_rag import UltraGist
from ultragist_rag.shared import shared_engine


class Engine(UltraGist):
    """What is loaded instead of a model."""

    def __init__(self):
        """Load nothing."""


@pytest.fixture
def loads(monkeypatch):
    """What has been loaded, by name and options."""
    loads = []

    def load(name, **options):
        loads.append((name, options))
        return Engine()

    monkeypatch.setattr(UltraGist, "from_pretrained", load)
    return loads


def test_equal_settings_share_one_engine_and_others_do_not(loads):
    one = shared_engine("a", device_map={"": "cpu"})
    assert shared_engine("a", device_map={"": "cpu"}) is one
    others = [shared_engine("b", device_map={"": "cpu"}), shared_engine("a"), shared_engine("a", device_map="cpu")]
    assert len({id(engine) for engine in (one, *others)}) == 4
    assert len(loads) == 4


def test_an_engine_lives_as_long_as_somebody_uses_it(loads):
    one = shared_engine("c")
    gone = weakref.ref(one)
    del one
    gc.collect()
    assert gone() is None
    shared_engine("c")
    assert len(loads) == 2


def test_a_model_that_fails_to_load_is_tried_again(monkeypatch, loads):
    with monkeypatch.context() as patched:
        patched.setattr(UltraGist, "from_pretrained", lambda name: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shared_engine("d")
    assert isinstance(shared_engine("d"), Engine)


def test_one_model_is_loaded_once_and_two_models_side_by_side(monkeypatch):
    both = threading.Barrier(2, timeout=60)  # broken if the second waits for the first
    loads = []

    def load(name):
        loads.append(name)
        both.wait()
        return Engine()

    monkeypatch.setattr(UltraGist, "from_pretrained", load)
    with ThreadPoolExecutor(8) as pool:
        engines = list(pool.map(shared_engine, ["e", "f"] * 4))
    assert sorted(loads) == ["e", "f"]
    assert len({id(engine) for engine in engines}) == 2
