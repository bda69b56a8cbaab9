import pytest
import torch
import transformers

from ultragist_rag import UltraGist
from ultragist_rag.config import GistConfig
from ultragist_rag.errors import InputError, UnsupportedModelError
from ultragist_rag.modeling.attach import attach
from ultragist_rag.modeling.rope import model_cos_sin, rotate
from ultragist_rag.testing import FAMILIES, randomise, tiny_model

IDS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(0))
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 256, "pad_token_id": 0}


def other_model(name, **settings):
    config = getattr(transformers, f"{name}Config")(**{**SIZES, "bos_token_id": 1, "eos_token_id": 2, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        randomise(model.named_parameters())
    return model


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_gists_the_model_is_bit_identical_and_with_them_only_later_tokens_change(family, rank):
    model = tiny_model(family)
    names, untouched = set(model.state_dict()), model(IDS).logits
    mask = torch.zeros(IDS.shape, dtype=torch.bool)
    with attach(model, GistConfig(window=8, rank=rank)) as attachment:
        randomise(attachment.parameters().items(), 1)
        assert torch.equal(model(IDS).logits, untouched)
        assert torch.equal(model(IDS, gist_mask=mask).logits, untouched)
        mask[0, 4] = True
        changed = (model(IDS, gist_mask=mask).logits != untouched).any(-1)
        assert changed.tolist() == [[False] * 4 + [True] * 5, [False] * 9]
        assert torch.equal(model(IDS).logits, untouched)
    assert torch.equal(model(IDS).logits, untouched)
    assert set(model.state_dict()) == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("rank", [None, 4])
def test_new_projections_are_copies_and_the_embedding_is_the_end_tokens(rank):
    model = tiny_model("qwen2")
    mask = torch.zeros(IDS.shape, dtype=torch.bool)
    mask[:, 5] = True
    as_end = IDS.clone()
    as_end[:, 5] = model.config.eos_token_id
    with attach(model, GistConfig(window=8, rank=rank)):
        torch.testing.assert_close(model(IDS, gist_mask=mask).logits, model(as_end).logits)


def test_only_the_chosen_projections_are_added():
    model = tiny_model()
    with attach(model, GistConfig(window=8, projections="kv")) as attachment:
        letters = {name.split("ultragist_")[1][0] for name in attachment.parameters() if "_proj" in name}
    assert letters == {"k", "v"}


def test_a_low_rank_difference_is_small_and_trainable():
    model = tiny_model()
    with attach(model, GistConfig(window=8, rank=2)) as attachment:
        parameters = attachment.parameters()
        assert parameters["model.layers.0.self_attn.ultragist_k_proj.down.weight"].shape == (2, 64)
        mask = torch.zeros(IDS.shape, dtype=torch.bool)
        mask[:, 3] = True
        model(IDS, gist_mask=mask).logits.sum().backward()
        assert parameters["model.layers.0.self_attn.ultragist_k_proj.up.weight"].grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Cohere", {}),
        ("Ernie4_5", {}),
        ("Glm", {"head_dim": 8}),
        ("GPTNeoX", {}),
        ("Granite", {"logits_scaling": 4.0}),
        ("Olmo2", {}),
        ("Phi3", {}),
        ("SmolLM3", {}),
    ],
)
def test_families_that_would_be_silently_wrong_are_refused_by_name(name, settings):
    model = other_model(name, **settings)
    names = set(model.state_dict())
    with pytest.raises(UnsupportedModelError, match=f"{name}ForCausalLM"):
        attach(model, GistConfig(window=8))
    assert set(model.state_dict()) == names


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_length_are_refused(kind):
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 512}
    with pytest.raises(UnsupportedModelError, match=f"rope_type '{kind}'"):
        attach(tiny_model("llama", rope_parameters=rope), GistConfig(window=8))


def test_scaled_positions_are_rotated_as_the_model_does():
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    model = tiny_model("llama", rope_parameters=rope)
    attach(model, GistConfig(window=8)).detach()  # the self-test compares with the stock cache
    cos, sin = model_cos_sin(model, torch.arange(3)[None])
    keys = torch.ones(1, 2, 3, 16)
    assert rotate(keys, cos, sin).norm() > 1.05 * keys.norm()  # yarn lengthens keys


def test_a_projection_replaced_after_attach_is_noticed():
    model = tiny_model()
    with attach(model, GistConfig(window=8)):
        attention = model.model.layers[1].self_attn
        attention.q_proj = torch.nn.Sequential(attention.q_proj)  # what a PEFT wrapper looks like
        with pytest.raises(UnsupportedModelError, match="q_proj of layer 1 was replaced"):
            model(IDS, gist_mask=torch.ones(IDS.shape, dtype=torch.bool))
        assert all(attention._forward_hooks for attention in [model.model.layers[0].self_attn])


def test_attaching_twice_is_refused_and_detaching_twice_is_not():
    model = tiny_model()
    attachment = attach(model, GistConfig(window=8))
    with pytest.raises(InputError, match="already"):
        attach(model, GistConfig(window=8))
    attachment.detach()
    attachment.detach()
    attach(model, GistConfig(window=8)).detach()


def test_a_sliding_window_caps_the_positions():
    model = tiny_model("mistral", sliding_window=128)
    with attach(model, GistConfig(window=8)) as attachment:
        assert attachment.n_positions == 128
    with attach(tiny_model("mistral"), GistConfig(window=8)) as attachment:
        assert attachment.n_positions == 1024


def test_packed_weights_need_a_rank():
    model = tiny_model()
    projection = model.model.layers[0].self_attn.k_proj
    packed = torch.nn.Linear(64, 32, bias=False)
    packed.weight = torch.nn.Parameter(torch.zeros(1024, 1, dtype=torch.uint8), requires_grad=False)
    model.model.layers[0].self_attn.k_proj = packed
    with pytest.raises(UnsupportedModelError, match=r"Set GistConfig.rank"):
        attach(model, GistConfig(window=8), self_test=False)
    model.model.layers[0].self_attn.k_proj = projection
    attach(model, GistConfig(window=8)).detach()


def test_four_bit_bases_work_with_a_rank(tmp_path, monkeypatch):
    modules = pytest.importorskip("bitsandbytes.nn.modules", reason="bitsandbytes is not installed")
    # Some CPUs have a kernel of their own that packs weights at the first inference and cannot train behind it.
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)
    tiny_model().save_pretrained(tmp_path / "base")
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=settings)
    with pytest.raises(UnsupportedModelError, match="Linear4bit"):
        attach(model, GistConfig(window=8))
    ids = IDS[:1].to(model.device)
    untouched = model(ids).logits
    with UltraGist.attach(model, config=GistConfig(window=4, ratio=2, rank=2, lead_token="none")) as engine:
        assert torch.equal(model(ids).logits, untouched)
        randomise(engine.gist_parameters().items(), 1)
        engine.forward(ids, labels=ids, training=True).loss.backward()
        assert all(value.grad is not None for value in engine.gist_parameters().values() if value.shape[0] == 1)
        engine.save_pretrained(tmp_path / "adapter", adapter_only=True, base=str(tmp_path / "base"))
        loaded = UltraGist.from_pretrained(tmp_path / "adapter", quantization_config=settings)
        assert loaded.fingerprint == engine.fingerprint
        torch.testing.assert_close(loaded.compress(ids).keys[2], engine.compress(ids).keys[2])
