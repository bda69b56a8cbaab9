"""docs/file_format.md says all that is needed to read a file: its reader reads what the store reads."""

import re
from pathlib import Path

import pytest
import torch

from ultragist_rag.sizing import KINDS
from ultragist_rag.store.codec import decode, encode, read_manifest

PAGE = (Path(__file__).parents[2] / "docs" / "file_format.md").read_text("utf-8")
OLD = Path(__file__).parent / "data" / "format1"


@pytest.fixture(scope="module")
def read_gist():
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(program, "docs/file_format.md", "exec"), names)
    return names["read_gist"]


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("slots", [0, 5, 97])
def test_the_reader_of_the_page_reads_what_the_store_reads(make_memory, read_gist, kind, dtype, slots):
    memory = make_memory(slots=slots, dtype=dtype, progress=None)
    odd = memory._map(lambda tensor: tensor[..., :7])
    for one in (memory, odd):
        data = encode(one, key=b"key", name="n", quantise=kind)
        expected = decode(data, key=b"key")
        manifest, keys, values = read_gist(data, b"key")
        assert manifest == read_manifest(data, key=b"key")
        for tensor, array in zip((*expected.keys, *expected.values), (*keys, *values), strict=True):
            assert torch.equal(torch.from_numpy(array.copy()).to(dtype), tensor)


def test_the_reader_of_the_page_notices_another_key(make_memory, read_gist):
    with pytest.raises(ValueError, match="another key"):
        read_gist(encode(make_memory(), key=b"key"))
    assert read_gist(encode(make_memory()))[0]["slots"] == 5


def test_the_page_names_every_part_of_a_manifest(make_memory):
    manifest = read_manifest(encode(make_memory(), quantise="int8"))
    names = [*manifest, *manifest["quantisation"]]
    assert [name for name in names if not re.search(rf"[`\"]{name}[`\"]", PAGE)] == []
