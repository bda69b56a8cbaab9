"""Fine-grained autoencoding: every gist must tell the tokens it stands for to a weak decoder.

Is        a decoder of one transformer block, and the loss with which it reads tokens off the keys and values of a gist.
Flow      memory, modeling -> [autoencoding] -> combined, loop.
Paper     Gist token study, arXiv 2412.17483, fine-grained autoencoding; reading each gist alone is what we take it for.
Change    how weak the decoder is, how a gist enters it.
Not here  when the loss is added and with which weight -> combined.py.
Holds     the loss of a gist depends on its own keys and values, the tokens it stands for, and the decoder alone.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ultragist_rag.errors import TrainingError
from ultragist_rag.layout.slots import GIST
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.segments import table_of
from ultragist_rag.modeling.attach import Attachment

__all__ = ["GistDecoder", "autoencoding_loss"]

_IGNORED = -100  # label that no loss counts


class GistDecoder(nn.Module):
    """One block of the base's kind with weights of its own; embeddings and output layer are those of the base.

    Its weights are float32 and drawn from `seed`, whatever else has been drawn. The base's modules are used, not owned,
    so they are neither trained twice nor saved with it.

    Args:
        attachment: The model whose gists are read.
        n_gists: Most gists that one call reads; more are drawn from.
        seed: Of its first weights.
    """

    def __init__(self, attachment: Attachment, n_gists: int = 64, seed: int = 0) -> None:
        """Draw the weights."""
        super().__init__()
        self._base = (attachment,)  # in a tuple, so that the base does not become a part of this module
        self.n_gists = n_gists
        config = copy.deepcopy(attachment.model.config)
        config._attn_implementation = "sdpa"
        width = 2 * attachment.n_layers * attachment.n_kv_heads * attachment.head_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.entry = nn.Linear(width, config.hidden_size)
            self.block = type(attachment.decoder.layers[0])(config, 0)
        self.norm = copy.deepcopy(attachment.decoder.norm)
        nn.init.ones_(self.norm.weight)
        self.to(attachment.device, torch.float32).requires_grad_(requires_grad=True)

    def forward(self, states: Tensor, ids: Tensor) -> Tensor:
        """Read tokens off gists, each one from its gist and the tokens in front of it.

        Args:
            states: Keys and values of each gist in all layers, shape (gists, width).
            ids: Tokens that each gist stands for, padded at the end, shape (gists, tokens).

        Returns:
            Logits of these tokens, shape (gists, tokens, vocab).
        """
        (base,) = self._base
        soft = self.entry(states.to(self.entry.weight.dtype))[:, None]
        told = base.decoder.embed_tokens(ids[:, :-1])
        hidden = torch.cat((soft, told.to(soft.dtype)), dim=1)
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rotary = base.decoder.rotary_emb(hidden, position_ids=positions)
        # Attention is causal and padding stands at the end, so no mask is needed.
        hidden = self.block(
            hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary, use_cache=False
        )
        head = base.model.get_output_embeddings()
        logits: Tensor = head(self.norm(hidden).to(head.weight.dtype))
        return logits


def autoencoding_loss(
    decoder: GistDecoder, memories: Sequence[GistMemory], documents: Sequence[Tensor], rng: random.Random
) -> Tensor:
    """Mean cross entropy of the tokens that gists stand for, read off each gist alone.

    Args:
        decoder: Reads the gists; if there are more than it takes, `rng` draws which ones.
        memories: Memories with gradients.
        documents: Token ids that each memory was made of, shape (tokens,).
        rng: Draws gists.

    Returns:
        A scalar; zero if the memories have no gists.

    Raises:
        TrainingError: If a memory stands for more tokens than its document has, or there are not as many of both.
    """
    if len(memories) != len(documents):
        raise TrainingError(f"{len(memories)} memories of {len(documents)} documents: give one document for each.")
    places = [place for number, memory in enumerate(memories) for place in _gists(number, memory, documents[number])]
    if len(places) > decoder.n_gists:
        places = sorted(rng.sample(places, decoder.n_gists))
    device = decoder.entry.weight.device
    if not places:
        return torch.zeros((), device=device)
    chosen: dict[int, list[int]] = {}
    for number, slot, _, _ in places:
        chosen.setdefault(number, []).append(slot)
    states = torch.cat([_states(memories[number], slots) for number, slots in chosen.items()]).to(device)
    tokens = [documents[number][start:stop].to(device) for number, _, start, stop in places]
    labels = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=_IGNORED)
    logits = decoder(states, labels.clamp(min=0))
    return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=_IGNORED)


def _gists(number: int, memory: GistMemory, document: Tensor) -> list[tuple[int, int, int, int]]:
    """Number of the memory, slot, first token and token behind the last, of each gist."""
    table = table_of(memory.segments)
    if len(table) and int(table.stop.max()) > len(document):
        raise TrainingError(
            f"memory {number} stands for {int(table.stop.max())} tokens, but its document has {len(document)}. "
            "Give the tokens that it was made of, the first one included."
        )
    slots = np.flatnonzero(table.kind == GIST)
    return [(number, int(slot), int(table.start[slot]), int(table.stop[slot])) for slot in slots]


def _states(memory: GistMemory, slots: Sequence[int]) -> Tensor:
    """Keys and values of some slots in all layers, side by side, shape (slots, width)."""
    index = torch.tensor(slots, device=memory.keys[0].device)
    parts = [layer[0].index_select(1, index.to(layer.device)) for layer in (*memory.keys, *memory.values)]
    return torch.cat([part.to(index.device).transpose(0, 1).flatten(1) for part in parts], dim=1)
