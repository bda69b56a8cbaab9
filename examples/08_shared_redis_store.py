"""One Redis, many processes, two tenants: what one process compressed another one reads, and tenants never meet.

    pip install '.[redis]'
    export ULTRAGIST_SECRET=...          # a long random value, the same for every process
    python examples/08_shared_redis_store.py redis://localhost:6379/0

Run it twice: the second run finds all memories in Redis and compresses nothing.
"""

import sys
from pathlib import Path

try:
    import redis  # noqa: F401 - the store loads it when it is needed

    from ultragist_rag import GistNotFoundError, GistStore, UltraGist, UltraGistError
    from ultragist_rag.rag import read_passages
except ImportError as error:
    raise SystemExit(f"{error.name} is missing. Run: pip install 'ultragist-rag[redis]'") from error

url = sys.argv[1] if len(sys.argv) > 1 else "redis://localhost:6379/0"
corpus = read_passages(Path(__file__).parent / "corpus")
tenants = {
    "acme": ("Mongolia", "Government", "When did Mongolia become independent?"),
    "globex": ("Norway", "Economy", "What is the currency of Norway?"),
}


def open_store(tenant):
    """Open the part of the store that belongs to a tenant: at most 20 MB, a month long, in 8 bits per number."""
    return GistStore.open(url, tenant, quota=20_000_000, ttl=30 * 86400, quantise="int8", ram_bytes=50_000_000)


def ingest(tenant, gist):
    """Compress what is not there yet, as a worker of the tenant would; return markers by section."""
    store, title = open_store(tenant), tenants[tenant][0]
    passages = [passage for passage in corpus if passage.title == title]
    markers = store.get_or_compress(gist, [passage.text for passage in passages], ratio=4)
    counts = store.stats()
    print(f"{tenant}: {counts.n_misses} compressed, {counts.n_hits} found, {counts.n_bytes} of {counts.quota} bytes")
    return {passage.section: marker for passage, marker in zip(passages, markers, strict=True)}


try:
    gist = UltraGist.from_pretrained("bundled")
    markers = {tenant: ingest(tenant, gist) for tenant in tenants}
    for tenant, (_, section, question) in tenants.items():
        # Usually another process: all it needs is the URL, the secret and the marker.
        pieces = open_store(tenant).resolve(gist, f"{markers[tenant][section]}\n\nQuestion: {question}\nAnswer:")
        print(f"{tenant}: {question} {gist.generate(pieces, max_new_tokens=24).strip()}")
    try:
        open_store("globex").get(markers["acme"]["Government"])
    except GistNotFoundError:
        print("globex cannot read what acme stored, not even with its marker")
except UltraGistError as error:  # no server, or no secret
    raise SystemExit(f"error: {error}") from error
