import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from jaxtyping import config as shape_checks
from safetensors.torch import load_file, save_file

from ultragist_rag import CheckpointError, ConfigError, GistConfig, InputError, UltraGist
from ultragist_rag.modeling.checkpoint import ADAPTER_FILE, CONFIG_FILE, authors_settings
from ultragist_rag.modeling.fingerprint import base_fingerprint, model_fingerprint, tokenizer_fingerprint
from ultragist_rag.modeling.lead import find_lead_token
from ultragist_rag.testing import randomise, tiny_engine, tiny_model

GOLDEN = Path(__file__).parents[1] / "golden"
IDS = torch.arange(3, 25)[None]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}


@pytest.fixture(scope="module")
def engine():
    return tiny_engine("qwen2", model=SMALL)


@pytest.fixture(scope="module")
def merged(engine, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "merged"
    engine.save_pretrained(path)
    return path


def same_bits(mine, other):
    mine, other = mine.model.state_dict(), other.model.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_a_merged_folder_is_read_back_bit_for_bit(engine, merged):
    loaded = UltraGist.from_pretrained(merged)
    same_bits(engine, loaded)
    assert loaded.config == engine.config
    assert loaded.fingerprint == engine.fingerprint
    assert torch.equal(loaded.compress(IDS).keys[1], engine.compress(IDS).keys[1])


def test_a_merged_folder_is_a_plain_model_for_transformers(engine, merged):
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(merged)
    assert torch.equal(plain(IDS).logits, engine.model(IDS).logits)
    assert not any("ultragist" in name for name in load_file(merged / "model.safetensors"))
    assert not list(merged.parent.glob(".*"))


def test_an_adapter_is_read_back_on_its_own_base_only(engine, merged, tmp_path):
    engine.save_pretrained(tmp_path / "adapter", adapter_only=True, base=str(merged))
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [ADAPTER_FILE, CONFIG_FILE]
    same_bits(engine, UltraGist.from_pretrained(tmp_path / "adapter"))
    tiny_model("qwen2", seed=5, **SMALL).save_pretrained(tmp_path / "other")
    engine.save_pretrained(tmp_path / "adapter", adapter_only=True, base=str(tmp_path / "other"))
    with pytest.raises(CheckpointError, match="was made for base"):
        UltraGist.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize("adapter_only", [False, True])
def test_a_folder_says_how_its_answers_are_held(merged, tmp_path, adapter_only):
    engine = UltraGist.from_pretrained(merged)
    assert engine.source_bias == 0
    engine.source_bias = 2.5
    engine.save_pretrained(tmp_path / "held", adapter_only=adapter_only, base=str(merged))
    assert UltraGist.from_pretrained(tmp_path / "held").source_bias == 2.5
    engine.source_bias = -1
    with pytest.raises(InputError, match="source_bias is -1"):
        engine.save_pretrained(tmp_path / "held", adapter_only=adapter_only, base=str(merged))
    assert UltraGist.from_pretrained(tmp_path / "held").source_bias == 2.5


@pytest.mark.parametrize("value", [-1, "4", None, True, float("nan"), float("inf")])
def test_a_bias_that_is_none_is_refused_with_its_file(merged, tmp_path, value):
    shutil.copytree(merged, tmp_path / "model")
    file = tmp_path / "model" / CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "source_bias": value}))
    with pytest.raises(CheckpointError, match=rf"{CONFIG_FILE}.*source_bias is {value!r}"):
        UltraGist.from_pretrained(tmp_path / "model")


def test_a_folder_from_before_there_was_a_bias_has_none(merged, tmp_path):
    shutil.copytree(merged, tmp_path / "model")
    file = tmp_path / "model" / CONFIG_FILE
    contents = json.loads(file.read_text())
    del contents["source_bias"]
    file.write_text(json.dumps(contents))
    assert UltraGist.from_pretrained(tmp_path / "model").source_bias == 0


def test_low_rank_adapters_are_read_back(tmp_path):
    engine = tiny_engine(model=SMALL, rank=2)
    engine.save_pretrained(tmp_path / "low")
    same_bits(engine, UltraGist.from_pretrained(tmp_path / "low"))


def test_a_plain_base_gets_copies_and_a_warning(merged, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(merged / name, tmp_path / name)
    with pytest.warns(UserWarning, match="untrained copies"):
        loaded = UltraGist.from_pretrained(tmp_path, config=GistConfig(window=8))
    weights = loaded.model.state_dict()
    base = weights["model.layers.1.self_attn.k_proj.bias"]
    assert torch.equal(weights["model.layers.1.self_attn.ultragist_k_proj.bias"], base)
    assert torch.equal(weights["model.ultragist_embed_tokens.weight"][0], weights["model.embed_tokens.weight"][2])


@pytest.mark.parametrize("name", ["beacon-qwen2-interleave", "ultragist-llama-prev"])
def test_the_authors_folders_load_without_their_code_and_become_ours(name, tmp_path):
    shutil.copytree(GOLDEN / name, tmp_path / "theirs")
    values = json.loads((tmp_path / "theirs" / "config.json").read_text())
    values["auto_map"] = {"AutoModelForCausalLM": "missing_code.Model"}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(values))
    theirs = UltraGist.from_pretrained(tmp_path / "theirs")
    assert all(f".{name.split('-')[0]}_" in key for key in theirs.gist_parameters())
    theirs.save_pretrained(tmp_path / "ours")
    ours = UltraGist.from_pretrained(tmp_path / "ours")
    same_bits(theirs, ours)
    assert ours.gist_parameters().keys() == theirs.gist_parameters().keys()
    saved = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert not [key for key in saved if key.startswith(("auto_map", "beacon_", "ultragist_"))]
    with pytest.warns(UserWarning, match="did not train"):
        ours.compress(IDS)
    ours.compress(IDS)  # warns once


def test_sharded_and_torch_files_are_read(tmp_path):
    folder = GOLDEN / "ultragist-llama-prev"
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in part}, tmp_path / f"model-{number}.safetensors", {"format": "pt"})
    index = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    shutil.copy(folder / "config.json", tmp_path)
    same_bits(UltraGist.from_pretrained(tmp_path), UltraGist.from_pretrained(folder))


def test_missing_and_damaged_files_are_refused(merged, tmp_path):
    with pytest.raises(CheckpointError, match=r"neither config.json"):
        UltraGist.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="neither a folder"):
        UltraGist.from_pretrained(tmp_path / "nowhere", local_files_only=True)
    shutil.copytree(merged, tmp_path / "m")
    file = tmp_path / "m" / ADAPTER_FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        UltraGist.from_pretrained(tmp_path / "m")
    file.unlink()
    with pytest.raises(CheckpointError, match=f"no {ADAPTER_FILE}"):
        UltraGist.from_pretrained(tmp_path / "m")
    contents = json.loads((merged / CONFIG_FILE).read_text())
    for change, words in (({"format_version": 99}, "format_version 99"), ({"gist_config": 3}, "cannot be read")):
        (tmp_path / "m" / CONFIG_FILE).write_text(json.dumps({**contents, **change}))
        with pytest.raises(CheckpointError, match=words):
            UltraGist.from_pretrained(tmp_path / "m")


def test_settings_that_contradict_the_weights_are_refused(merged, monkeypatch):
    with pytest.raises(ConfigError, match="rank is 3"):
        UltraGist.from_pretrained(merged, config=GistConfig(window=8, rank=3))
    assert UltraGist.from_pretrained(merged, config=GistConfig(window=4)).config.window == 4
    monkeypatch.setattr(shape_checks, "jaxtyping_disable", True)
    with pytest.raises(CheckpointError, match="param is"):
        authors_settings({"ultragist_window": 8, "ultragist_param": ["q", "mlp"]})


def test_a_folder_with_other_files_is_not_overwritten(engine, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds files"):
        engine.save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_failed_save_leaves_the_old_folder(engine, tmp_path, monkeypatch):
    engine.save_pretrained(tmp_path / "m")
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    monkeypatch.setattr("safetensors.torch.save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        engine.save_pretrained(tmp_path / "m")
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_authors_settings_are_translated():
    common = {"window": 64, "stride": 32, "attn": "full-coverage", "sink_size": 1, "attend_prev": False}
    common |= {"ratio": [2, 8], "ratio_mix": "adapt-1024", "param": ["q", "v"]}
    values = {f"ultragist_{key}": value for key, value in common.items()}
    family, config = authors_settings({**values, "max_position_embeddings": 4096, "rope_scaling": {"factor": 2.0}})
    expected = GistConfig(
        window=64, stride=32, ratio=8, ratios=(2, 8), ratio_policy="adapt", adapt_tokens=1024, sink=1,
        attention="full-coverage", attend_previous=False, projections="qv",
    )  # fmt: skip
    assert (family, config) == ("ultragist", expected)
    values = {f"beacon_{key}": value for key, value in {**common, "stride": 64}.items()}
    _, config = authors_settings({**values, "max_position_embeddings": 4096, "rope_scaling": {"factor": 2.0}})
    assert (config.placement, config.adapt_positions, config.even_spread) == ("interleave", 8192, False)
    assert authors_settings({"model_type": "llama"}) is None


def test_fingerprints_follow_weights_but_not_the_format_of_loading(engine, merged):
    assert base_fingerprint(engine.model) == base_fingerprint(tiny_model("qwen2", **SMALL))
    assert base_fingerprint(tiny_model("qwen2", **SMALL).to(torch.bfloat16)) == base_fingerprint(engine.model)
    assert base_fingerprint(tiny_model("qwen2", seed=1, **SMALL)) != base_fingerprint(engine.model)
    half = UltraGist.from_pretrained(merged, dtype=torch.bfloat16)
    assert half.fingerprint == engine.fingerprint == model_fingerprint(engine.model)
    name, value = next(iter(half.gist_parameters().items()))
    randomise([(name, value)], 9)
    assert half.fingerprint != engine.fingerprint


class Words:
    """The least that looks like a tokenizer: one token per character, maybe one in front."""

    def __init__(self, front=(), chat=None):
        self.front, self.chat_template = list(front), chat
        self.special_tokens_map, self.added_tokens_decoder = {}, {7: "<start>"}

    def __call__(self, text, add_special_tokens=True):
        ids = [7 if text.startswith("<start>") else 50, *map(ord, text[1:])]
        return {"input_ids": [*(self.front if add_special_tokens else []), *ids]}

    def apply_chat_template(self, messages, tokenize):
        return self.chat_template + messages[0]["content"]

    def get_vocab(self):
        return {"<start>": 7}


def test_the_lead_token_is_what_stands_in_front_of_every_text():
    assert find_lead_token("auto", Words(front=[1])) == 1
    assert find_lead_token("auto", Words(chat="<start>user")) == 7
    assert find_lead_token("auto", Words(chat="Question: ")) is None
    assert find_lead_token("auto", Words()) is None
    assert find_lead_token("none", Words(front=[1])) is None
    assert find_lead_token(9, None) == 9
    assert find_lead_token("auto", None) is None


def test_tokenizer_fingerprints_tell_tokenizers_apart():
    prints = {tokenizer_fingerprint(t) for t in (Words(), Words(front=[1]), Words(chat="x"), None)}
    assert len(prints) == 4
    assert tokenizer_fingerprint(Words()) == tokenizer_fingerprint(Words())


def test_nothing_is_said_about_gist_weights_that_are_there(merged):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        UltraGist.from_pretrained(merged)
