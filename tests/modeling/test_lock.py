"""A model's lock is re-entrant, holds other threads off, and keeps cuDNN's attention out while any is held."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from ultragist_rag.modeling.lock import ModelLock
from ultragist_rag.testing import tiny_engine

is_on = torch.backends.cuda.cudnn_sdp_enabled


@pytest.fixture(params=[True, False], autouse=True)
def before(request: pytest.FixtureRequest) -> Iterator[bool]:
    found = is_on()
    torch.backends.cuda.enable_cudnn_sdp(request.param)
    yield request.param
    torch.backends.cuda.enable_cudnn_sdp(found)


def test_cudnn_attention_is_off_until_the_last_lock_is_free(before: bool) -> None:
    one, other = ModelLock(), ModelLock()
    with one:
        assert not is_on()
        with one, other:
            assert not is_on()
        assert not is_on()
    assert is_on() == before
    with pytest.raises(KeyError), one:
        raise KeyError
    assert is_on() == before


def test_another_thread_waits_and_the_setting_comes_back(before: bool) -> None:
    one, other = ModelLock(), ModelLock()
    got: list[bool] = []

    def take() -> None:
        got.append(one.acquire(blocking=False))
        with other:
            got.append(is_on())

    with one:
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        assert not is_on()
    assert got == [False, False]
    assert is_on() == before
    with pytest.raises(RuntimeError):
        one.release()
    assert is_on() == before


def test_forwards_of_an_engine_run_without_it(before: bool) -> None:
    engine = tiny_engine()
    seen: list[bool] = []
    engine.attachment.decoder.register_forward_pre_hook(lambda *_: seen.append(is_on()))
    memory = engine.compress(torch.arange(3, 40)[None])
    engine.generate([[memory, torch.tensor([[5, 6]])]], max_new_tokens=2, return_ids=True)
    assert len(seen) > 1
    assert not any(seen)
    assert is_on() == before
