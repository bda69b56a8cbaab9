"""One lock for each model; while any is held, cuDNN's attention stands aside.

Is        `ModelLock`: a re-entrant lock around forwards, and the setting of torch that they need.
Flow      [lock] -> attach. Imports torch only.
Holds     the setting is as before once no lock is held.
Source    cuDNN plans attention anew for every shape, and its kernels fail on some shapes with a mask (pytorch issues
          122695, 190321). Windows, slots and answers have ever new shapes; torch's other kernels take them as they are.
"""

from __future__ import annotations

import threading

import torch

__all__ = ["ModelLock"]


class ModelLock:
    """A re-entrant lock, as `threading.RLock`."""

    _guard = threading.Lock()
    _n_held = 0
    _was_on = True

    def __init__(self) -> None:
        """Begin free."""
        self._lock = threading.RLock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; tell whether it was got."""
        got = self._lock.acquire(blocking, timeout)
        if got:
            with ModelLock._guard:
                if not ModelLock._n_held:
                    ModelLock._was_on = torch.backends.cuda.cudnn_sdp_enabled()
                    torch.backends.cuda.enable_cudnn_sdp(False)
                ModelLock._n_held += 1
        return got

    def release(self) -> None:
        """Give it back, once for each time that it was taken.

        Raises:
            RuntimeError: If another thread holds it, or none.
        """
        self._lock.release()
        with ModelLock._guard:
            ModelLock._n_held -= 1
            if not ModelLock._n_held:
                torch.backends.cuda.enable_cudnn_sdp(ModelLock._was_on)

    def __enter__(self) -> ModelLock:
        """Take the lock."""
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self.release()
