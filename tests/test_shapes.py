"""Shapes that stand in signatures are checked in this very run."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

from ultragist_rag.modeling.encode import rotated_past
from ultragist_rag.modeling.lead import find_lead_token
from ultragist_rag.modeling.rope import rotate
from ultragist_rag.modeling.split import masked_attention


def test_a_wrong_shape_is_found() -> None:
    keys, turn = torch.zeros(1, 2, 5, 4), torch.zeros(1, 5, 4)
    assert rotate(keys, turn, turn).shape == keys.shape
    with pytest.raises(jaxtyping.TypeCheckError, match="rotate"):
        rotate(keys, turn[0], turn)
    query = torch.zeros(1, 2, 3, 4)
    with pytest.raises(jaxtyping.TypeCheckError, match="mask"):
        masked_attention(query, keys, keys, torch.ones(3, 5, dtype=torch.bool), None)


def test_functions_without_shapes_are_left_as_they_are() -> None:
    assert not hasattr(find_lead_token, "__wrapped__")
    assert all(hasattr(one, "__wrapped__") for one in (rotate, rotated_past))  # the latter by a name made of others
