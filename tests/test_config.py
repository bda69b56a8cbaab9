import dataclasses

import pytest
from architectures import ARCHITECTURES
from jaxtyping import config as shape_checks

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import ConfigError, UltraGistError


def test_defaults_that_depend_on_others_are_filled_in():
    config = GistConfig(window=64, ratio=4)
    assert (config.stride, config.n_stride, config.choices) == (64, 64, (4,))
    assert dataclasses.replace(config, ratio=2).choices == (2,)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"window": 32, "stride": 8, "ratios": (2, 4, 0), "ratio_policy": "sequence", "sink": 3},
        {"placement": "interleave", "attention": "full-coverage", "projections": "qkv", "rank": 4, "lead_token": 5},
        {"memory": "recurrent", "attention": "full-coverage"},
        {"ratio_policy": "adapt", "ratios": (2, 4), "adapt_tokens": 9, "adapt_positions": 99, "lead_token": "none"},
    ],
)
def test_from_dict_is_the_inverse_of_to_dict(settings):
    config = GistConfig(**settings)
    assert GistConfig.from_dict(config.to_dict()) == config


@pytest.fixture
def no_type_checks(monkeypatch):
    """Users have no type checker at run time: the package itself must refuse."""
    monkeypatch.setattr(shape_checks, "jaxtyping_disable", True)


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": 0}, "window is 0"),
        ({"window": True}, "window is True"),
        ({"window": 8.0}, "window is 8.0"),
        ({"window": 8, "stride": 9}, "stride is 9"),
        ({"stride": 0}, "stride is 0"),
        ({"ratio": 0}, "ratio is 0"),
        ({"ratios": (2, -1), "ratio_policy": "sequence"}, "ratios is -1"),
        ({"ratios": (2, 4)}, "'fixed' takes one ratio"),
        ({"window": 8, "ratios": (3, 5), "ratio_policy": "sequence"}, "divides stride 8"),
        ({"ratio_policy": "best"}, "ratio_policy is 'best'"),
        ({"placement": "before"}, "placement is 'before'"),
        ({"attention": "none"}, "attention is 'none'"),
        ({"window": 8, "stride": 4, "ratio": 2, "placement": "interleave"}, "'interleave' condenses whole windows"),
        ({"ratios": (0,), "placement": "interleave"}, "'interleave' knows neither ratio 0"),
        ({"window": 8, "sink": 9}, "sink is 9"),
        ({"projections": "qq"}, "projections is 'qq'"),
        ({"projections": "qx"}, "projections is 'qx'"),
        ({"rank": 0}, "rank is 0"),
        ({"lead_token": -1}, "lead_token is -1"),
        ({"lead_token": "bos"}, "lead_token is 'bos'"),
        ({"attend_previous": 1}, "attend_previous is 1"),
        ({"adapt_tokens": -1}, "adapt_tokens is -1"),
        ({"memory": "soft"}, "memory is 'soft'"),
        ({"memory": "recurrent"}, "attention 'step-expansion'"),
        ({"memory": "recurrent", "placement": "interleave", "attention": "full-coverage"}, "placement is 'interleave'"),
        ({"memory": "recurrent", "attention": "full-coverage", "sink": 1}, "sink is 1"),
    ],
)
def test_what_cannot_work_is_refused_with_the_value(settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        GistConfig.from_dict(settings)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, UltraGistError)


def test_what_was_saved_before_there_were_recurrent_memories_is_still_the_same():
    """Ids of stored memories are made of `to_dict`, so a setting that came later shows only where it is not default."""
    assert "memory" not in GistConfig().to_dict()
    assert GistConfig.from_dict({"window": 8}).memory == "kv"


def test_coarse_gists_are_those_that_see_their_whole_window():
    found = {name: GistConfig(**settings).granularity for name, settings in ARCHITECTURES.items()}
    assert found == {name: name.partition("-")[0] for name in ARCHITECTURES}


def test_unknown_settings_are_refused_by_name():
    with pytest.raises(ConfigError, match="unknown settings windw: "):
        GistConfig.from_dict({"windw": 8})


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GistConfig().window = 8
