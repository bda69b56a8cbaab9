"""Everything this package raises on purpose.

Is        the exception tree:

          UltraGistError
          ├── ConfigError            (ValueError)  a GistConfig that cannot work
          ├── InputError             (ValueError)  a bad argument of a call
          ├── UnsupportedModelError                a model whose keys, positions or projections we cannot follow
          ├── CheckpointError                      files of a checkpoint or an adapter do not fit
          ├── MemoryMismatchError                  a memory of another model, tokenizer or config
          ├── ContextOverflowError                 more slots and tokens than the model has positions
          ├── QueueFullError                       too many requests wait for the model
          ├── RequestTimeoutError    (TimeoutError) a request that took longer than it may
          ├── TrainingError                        a training run that cannot start or go on
          └── StoreError
              ├── GistNotFoundError                no memory under this marker
              └── CorruptGistError                 a stored file that is truncated, altered or of an unknown version

Flow      imported by every layer, imports nothing.
Change    add a class here only when a caller would handle it differently.
Holds     a message says what is wrong, the value, and what to do.
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ContextOverflowError",
    "CorruptGistError",
    "GistNotFoundError",
    "InputError",
    "MemoryMismatchError",
    "QueueFullError",
    "RequestTimeoutError",
    "StoreError",
    "TrainingError",
    "UltraGistError",
    "UnsupportedModelError",
]


class UltraGistError(Exception):
    """Base class of all errors of this package."""


class ConfigError(UltraGistError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class InputError(UltraGistError, ValueError):
    """A bad argument of a call: wrong type, shape, value or combination."""


class UnsupportedModelError(UltraGistError):
    """A model whose keys, positions or projections cannot be followed exactly."""


class CheckpointError(UltraGistError):
    """Files of a checkpoint or adapter that are missing, damaged or made for another model."""


class MemoryMismatchError(UltraGistError):
    """A memory that was made with another model, tokenizer or config."""


class ContextOverflowError(UltraGistError):
    """Memory slots and tokens need more positions than the model has."""


class QueueFullError(UltraGistError):
    """So many requests wait for the model that another one is refused at once."""


class RequestTimeoutError(UltraGistError, TimeoutError):
    """A request that waited or decoded longer than it was allowed to."""


class TrainingError(UltraGistError):
    """A training run that cannot start or go on."""


class StoreError(UltraGistError):
    """A store that cannot do what was asked."""


class GistNotFoundError(StoreError):
    """No memory is stored under this marker."""


class CorruptGistError(StoreError):
    """A stored file that is truncated, altered or of an unknown version."""
