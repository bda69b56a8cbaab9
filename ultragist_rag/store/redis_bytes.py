"""A byte store in Redis, for any number of processes and machines: `redis://`, `rediss://`, `unix://`.

Is        one string per key, its size in a hash of its folder, its last use in sorted sets; scripts that Redis runs as
          one step change them together.
Flow      base, eviction -> [redis_bytes] -> store. Imports no torch, and redis only when a store is opened.
Change    how things are counted and evicted in Redis.
Not here  the same order of eviction in Python -> eviction.py.
Holds     a put is seen as a whole or not at all; the values never exceed the bound, whoever writes.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from ultragist_rag.errors import InputError, StoreError
from ultragist_rag.store.base import Usage, check_items, is_key, without_password
from ultragist_rag.store.eviction import check_fit
from ultragist_rag.store.keys import SecretSource

__all__ = ["RedisBytes", "open_redis"]

_PREFIX = "ultragist:"
_SIZES = f"{_PREFIX}sizes:"
_BYTES = f"{_PREFIX}bytes"
_ALL = "*"
_SECONDS = 30.0

# Values lie under ultragist:FOLDER/ID.KIND. ultragist:sizes:FOLDER tells their sizes and ultragist:bytes their sum, of
# each folder and, under "*", of all. ultragist:gist and ultragist:source, alone and followed by :FOLDER, hold keys in
# order of use, numbered by ultragist:clock.
_SHARED = """
local P = 'ultragist:'

local function parts(key)
  return string.match(key, '^([^/]+)/[^.]+%.(%a+)$')
end

local function size_of(key)
  return tonumber(redis.call('HGET', P .. 'sizes:' .. parts(key), key)) or 0
end

local function count(folder, change)
  redis.call('HINCRBY', P .. 'bytes', folder, change)
  redis.call('HINCRBY', P .. 'bytes', '*', change)
end

local function use(key)
  local folder, kind = parts(key)
  local now = kind ~= 'record' and redis.pcall('INCR', P .. 'clock')
  if type(now) == 'number' then -- a full server can still be read
    redis.call('ZADD', P .. kind, now, key)
    redis.call('ZADD', P .. kind .. ':' .. folder, now, key)
  end
end

local function drop(key)
  local folder, kind = parts(key)
  local size = size_of(key)
  if redis.call('HDEL', P .. 'sizes:' .. folder, key) == 1 then count(folder, 0 - size) end
  redis.call('ZREM', P .. kind, key)
  redis.call('ZREM', P .. kind .. ':' .. folder, key)
  return redis.call('DEL', P .. key)
end
"""

_GET = """
local data = redis.call('GET', P .. KEYS[1])
if data then use(KEYS[1]) else drop(KEYS[1]) end
return data
"""

_DELETE = """
local found = 0
for _, key in ipairs(KEYS) do found = found + drop(key) end
return found
"""

# KEYS: what is put. ARGV: bound and quota, or '', then the values. Answers with the number of keys evicted, or with the
# bound that is too small and the bytes of what cannot go. Nothing is written before it is known that all fits.
_PUT = """
local folder = parts(KEYS[1])
local n_bytes, replaced, taken, victims = 0, 0, {}, {}
for i, key in ipairs(KEYS) do
  n_bytes = n_bytes + #ARGV[i + 2]
  replaced = replaced + size_of(key)
  taken[key] = true
end

local function plan(bound, used, suffix)
  for _, kind in ipairs({'gist', 'source'}) do
    local at, rows = 0, nil
    while used + n_bytes > bound and (rows == nil or #rows > 0) do
      rows = redis.call('ZRANGE', P .. kind .. suffix, at, at + 99)
      at = at + 100
      for _, key in ipairs(rows) do
        if used + n_bytes > bound and not taken[key] then
          used = used - size_of(key)
          taken[key] = true
          victims[#victims + 1] = key
        end
      end
    end
  end
  return used
end

local function used_by(name)
  return (tonumber(redis.call('HGET', P .. 'bytes', name)) or 0) - replaced
end

local freed = 0
for i, name in ipairs({'quota', 'max_bytes'}) do
  local bound = tonumber(ARGV[3 - i])
  if bound then
    local before = name == 'quota' and used_by(folder) or used_by('*') - freed
    local after = plan(bound, before, name == 'quota' and ':' .. folder or '')
    if after + n_bytes > bound then return {name, after} end
    freed = freed + before - after
  end
end

for _, key in ipairs(victims) do drop(key) end
for i, key in ipairs(KEYS) do
  use(key)
  local before = size_of(key)
  redis.call('SET', P .. key, ARGV[i + 2])
  redis.call('HSET', P .. 'sizes:' .. folder, key, #ARGV[i + 2])
  count(folder, #ARGV[i + 2] - before)
end
return #victims
"""


class RedisBytes:
    """Bytes in one database of a Redis server, under names that begin with `ultragist:`.

    The keys that scripts build themselves lie on one server: a Redis Cluster is no place for it.
    """

    secret_source: ClassVar[SecretSource] = "required"

    def __init__(self, client: Any, name: str, max_bytes: int | None = None) -> None:
        self.max_bytes = max_bytes
        self._client = client
        weakref.finalize(self, client.close)  # not left to the garbage collector, which may meet its sockets first
        self._name = name
        self._n_evicted = 0
        self._counting = threading.Lock()
        self._get, self._put, self._delete = (client.register_script(_SHARED + code) for code in (_GET, _PUT, _DELETE))

    def get(self, key: str) -> bytes | None:
        """Return the bytes under a key and mark it as used now; None if there is none.

        Raises:
            StoreError: If Redis does not answer.
        """
        if not is_key(key):
            return None
        with self._asking():
            data: bytes | None = self._get(keys=[key])
        return data

    def head(self, key: str, n_bytes: int) -> bytes | None:
        """Return the first bytes under a key; None if there is none. This is no use of it.

        Raises:
            StoreError: If Redis does not answer.
        """
        if not is_key(key):
            return None
        with self._asking():
            pipeline = self._client.pipeline()
            found, data = pipeline.exists(_PREFIX + key).getrange(_PREFIX + key, 0, n_bytes - 1).execute()
            return data if found else None

    def put(self, items: Mapping[str, bytes], *, quota: int | None = None) -> None:
        """Store all items of one folder or none, and evict what was not used for longest.

        Raises:
            InputError: If a key is malformed.
            StoreError: If they do not fit, or Redis refuses them or does not answer.
        """
        check_items(items)
        bounds = ["" if bound is None else bound for bound in (self.max_bytes, quota)]
        with self._asking():
            answer = self._put(keys=list(items), args=[*bounds, *items.values()])
        if isinstance(answer, list):
            name = answer[0].decode("ascii")
            bound = quota if name == "quota" else self.max_bytes
            check_fit(sum(map(len, items.values())), bound, name, answer[1])
        else:
            with self._counting:
                self._n_evicted += answer

    def delete(self, keys: tuple[str, ...]) -> int:
        """Remove keys; return how many there were.

        Raises:
            StoreError: If Redis does not answer.
        """
        known = list(filter(is_key, keys))
        with self._asking():
            return int(self._delete(keys=known)) if known else 0

    def contains(self, key: str) -> bool:
        """Say whether something is stored under a key; this is no use of it.

        Raises:
            StoreError: If Redis does not answer.
        """
        with self._asking():
            return is_key(key) and bool(self._client.exists(_PREFIX + key))

    def entries(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield key and size of everything in a folder.

        Raises:
            StoreError: If Redis does not answer.
        """
        with self._asking():
            sizes = self._client.hgetall(_SIZES + folder)
        for key, size in sizes.items():
            yield key.decode("ascii"), int(size)

    def usage(self) -> Usage:
        """Return how full the store is: the bytes of all values, without what Redis needs for itself.

        Raises:
            StoreError: If Redis does not answer.
        """
        with self._asking():
            n_bytes = int(self._client.hget(_BYTES, _ALL) or 0)
        return Usage(n_bytes, self.max_bytes, self._n_evicted)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn what Redis and the network say into StoreErrors."""
        from redis.exceptions import RedisError

        try:
            yield
        except (RedisError, OSError) as error:
            raise StoreError(
                f"{self._name} failed: {error}. Nothing is stored in part: see to the server and the network, and try "
                "again."
            ) from error


def open_redis(url: str, max_bytes: int | None, **options: Any) -> RedisBytes:
    """Open a database of a Redis server.

    Args:
        url: `redis://[user:password@]host[:port][/database]`, `rediss://...` with TLS, or `unix://path`.
        max_bytes: Bound on all values.
        options: What `redis.Redis.from_url` takes, for instance `socket_timeout` in seconds.

    Returns:
        The store. A server that was restarted is connected to anew.

    Raises:
        InputError: If the URL or an option is not understood, or redis-py is not installed.
        StoreError: If the server does not answer.
    """
    name = without_password(url)
    try:
        from redis import Redis
    except ImportError as error:
        raise InputError(f"{name} needs redis-py: install ultragist-rag[redis].") from error
    seconds = {"socket_timeout": _SECONDS}
    if not url.startswith("unix:"):
        seconds["socket_connect_timeout"] = _SECONDS
    try:
        client = Redis.from_url(url, **{**seconds, **options, "decode_responses": False})
        place = RedisBytes(client, name, max_bytes)
        place.usage()
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} cannot be opened: {error}. Correct the URL or the options.") from error
    return place
