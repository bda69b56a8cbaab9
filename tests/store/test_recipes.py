"""Recipes tell memories apart by all that makes them differ, and say truly what can be made again."""

from dataclasses import replace

import pytest
import torch

from ultragist_rag.memory.memory import Segment
from ultragist_rag.store import GistStore
from ultragist_rag.store.quantise import as_stored
from ultragist_rag.store.recipes import can_repeat, recipe_for, recipe_of, repeat
from ultragist_rag.store.source import SourceRecord

TEXT = "The code of box 4711 is QX-93-AB, the code of box 4712 is QX-94-AC. Ask for the grey one. " * 3
SPANS = (Segment("gist", 0, 2, 0, 8, 4), Segment("verbatim", 2, 3, 8, 9), Segment("gist", 3, 5, 9, 17, 4))


@pytest.mark.parametrize("verbatim", ["", "regex"])
@pytest.mark.parametrize("dtype", [None, "int8", "int4"])
def test_what_an_engine_makes_has_the_recipe_that_was_foretold(text_engine, verbatim, dtype):
    (memory,) = text_engine.compress([TEXT], ratio=4, verbatim=verbatim or None)
    recipe = recipe_for(text_engine, 4, dtype=dtype, verbatim=verbatim)
    assert recipe_of(memory, dtype=dtype) == recipe
    assert recipe.quantise == dtype
    assert (memory.n_verbatim > 0) == bool(verbatim)
    assert can_repeat(recipe)


def test_memories_are_made_again_each_by_its_recipe(text_engine, same):
    recipes = [
        recipe_for(text_engine, ratio, joint, dtype=dtype, verbatim=verbatim)
        for ratio, joint, dtype, verbatim in [(4, False, None, ""), (2, False, "int4", "regex"), (4, True, "int8", "")]
    ]
    records = [SourceRecord(name=str(n), text=TEXT, recipe=recipe) for n, recipe in enumerate(recipes)]
    made = repeat(text_engine, records)
    assert [recipe_of(memory, dtype=recipe.quantise) for memory, recipe in zip(made, recipes, strict=True)] == recipes
    assert same(made[1], text_engine.compress([TEXT], ratio=2, verbatim="regex")[0].seal())


@pytest.mark.parametrize("quantise", ["int8", "int4"])
def test_quantised_memories_are_found_read_and_made_again_the_same(engine, quantise, same, tmp_path):
    store = GistStore.open(tmp_path, secret="a secret of the tests", quantise=quantise)
    plain = GistStore.open(tmp_path, secret="a secret of the tests")
    (marker,) = store.get_or_compress(engine, [TEXT], ratio=4)
    expected = as_stored(engine.one(TEXT), quantise)
    assert store.find(TEXT, engine, 4) == marker
    assert plain.find(TEXT, engine, 4) is None
    assert same(store.get(marker, engine), expected)
    (path,) = tmp_path.rglob("*.gist")
    stored = path.read_bytes()
    path.unlink()
    assert same(store.get(marker, engine), expected)
    assert path.read_bytes() == stored
    assert same(plain.get(marker, engine), expected)
    assert plain.get_or_compress(engine, [TEXT], ratio=4) != [marker]
    assert len(stored) < len(max((path.read_bytes() for path in tmp_path.rglob("*.gist")), key=len)) / 1.5


def test_policies_without_a_known_name_are_not_made_again(make_memory):
    named, unnamed = (make_memory(segments=SPANS, verbatim=name) for name in ("regex", "custom"))
    assert can_repeat(recipe_of(named))
    assert not can_repeat(recipe_of(unnamed))
    assert not can_repeat(replace(recipe_of(named), verbatim="registered elsewhere"))
    other = make_memory(segments=(*SPANS[:2], Segment("verbatim", 3, 5, 9, 11)), verbatim="custom")
    assert len({recipe_of(memory).verbatim for memory in (named, unnamed, other)}) == 3


def test_number_formats_tell_memories_apart(make_memory):
    half = make_memory(dtype=torch.bfloat16)
    names = [recipe_of(half).dtype, recipe_of(make_memory()).dtype, recipe_of(half, dtype="int4").dtype]
    assert names == ["bfloat16", "float32", "int4"]
    assert [recipe_of(half, dtype=kind).quantise for kind in (None, "int8", "int4")] == [None, "int8", "int4"]
