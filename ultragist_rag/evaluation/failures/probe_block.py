"""The weak decoder of the reconstruction probe: one block of the model's class that reads tokens from gists.

Is        a block, what goes into it, and its short training.
Flow      memory, modeling -> [probe_block] -> probe.
Paper     arXiv 2412.17483, table 3: a decoder of a single transformer block. How it sees the gists is ours.
Change    what a token gets to see, how long and how fast the block learns.
Not here  what is measured with it -> probe.py.
Holds     the model is only read; equal seeds give equal blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.segments import table_of
from ultragist_rag.modeling.rope import decoder_of, model_cos_sin

__all__ = ["BlockProbe"]

_BLOCK, _BATCH, _RATE = 64, 8, 3e-3
_MOST_LAYERS = 8


class _OneBlock(nn.Module):
    """One block of the model's class behind a projection of gists; it says all tokens at once."""

    def __init__(self, model: Any, n_features: int, n_places: int) -> None:
        super().__init__()
        decoder = decoder_of(model)
        config = copy.deepcopy(model.config)
        config._attn_implementation = "sdpa"
        self.project = nn.Linear(n_features, config.hidden_size)
        self.places = nn.Embedding(n_places, config.hidden_size)
        self.block = type(decoder.layers[0])(config, 0)
        self.norm = copy.deepcopy(decoder.norm)
        self.float().to(decoder.embed_tokens.weight.device).requires_grad_(True)

    def forward(self, gists: Tensor, places: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Hidden states (batch, tokens, hidden) of gist features (batch, tokens, features) and places of the tokens."""
        seen = torch.ones((1, 1, gists.shape[1], gists.shape[1]), dtype=torch.bool, device=gists.device)
        out = self.block(self.project(gists) + self.places(places), attention_mask=seen, position_embeddings=rope)
        hidden: Tensor = self.norm(out[0] if isinstance(out, tuple) else out)
        return hidden


@dataclass(frozen=True, slots=True, eq=False)
class BlockProbe:
    """A trained weak decoder.

    For every token the block gets the keys (before rotation) and values of the gist that covers it, of at most eight
    layers spread evenly, scaled and projected to the width of the model, plus an embedding of the token's place under
    that gist. All tokens of a block of 64 see each other, and are said at once. Projection, places, block and norm are
    trained; the output embedding is the model's own and stays as it is. A decoder that reads gists as a prefix, as the
    study's does, would first have to learn which gist is whose, for which a hundred steps are too few.
    """

    block: _OneBlock
    head: Tensor  # (vocab, hidden)
    rope: tuple[Tensor, Tensor]
    scale: tuple[Tensor, Tensor]
    owner: Tensor  # (window,): the gist of each token
    place: Tensor  # (window,): which of its gist's tokens it is

    @classmethod
    def train(cls, model: Any, ids: Tensor, memories: Sequence[GistMemory], *, steps: int, seed: int) -> BlockProbe:
        """Train a block on windows.

        Args:
            model: The causal LM whose class, width and output embedding are taken.
            ids: Token ids, shape (windows, window).
            memories: The gists of each window, all made alike.
            steps: Training steps.
            seed: Of weights and batches.

        Returns:
            The decoder.
        """
        device = decoder_of(model).embed_tokens.weight.device
        gists = torch.stack([_features(memory) for memory in memories]).to(device)
        scale = gists.mean((0, 1)), gists.std((0, 1)) + 1e-5
        gists, ids = (gists - scale[0]) / scale[1], ids.to(device)
        owner, place = (part.to(device) for part in _owners(memories[0], ids.shape[1]))
        length = min(_BLOCK, ids.shape[1])
        cos, sin = model_cos_sin(model, torch.arange(length)[None])
        head = model.get_output_embeddings().weight.detach()
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(seed)
            block = _OneBlock(model, gists.shape[2], int(place.max()) + 1)
            made = cls(block, head, (cos.float(), sin.float()), scale, owner, place)
            optimizer = torch.optim.AdamW(block.parameters(), lr=_RATE, weight_decay=0.0)
            draw = torch.Generator().manual_seed(seed)
            for _ in range(steps):
                rows = torch.randint(len(ids), (_BATCH,), generator=draw).to(device)[:, None]
                starts = torch.randint(ids.shape[1] - length + 1, (_BATCH,), generator=draw).to(device)
                columns = starts[:, None] + torch.arange(length, device=device)
                logits = made._logits(gists[rows, owner[columns]], place[columns])
                loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[rows, columns].flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return made

    @torch.no_grad()
    def right(self, ids: Tensor, memories: Sequence[GistMemory]) -> Tensor:
        """Say windows, block by block; what is left over at their ends is left out.

        Args:
            ids: Token ids, shape (windows, window).
            memories: The gists that are shown for each window.

        Returns:
            Which tokens were said rightly, shape (windows, tokens).
        """
        length = self.rope[0].shape[1]
        columns = torch.arange(ids.shape[1] // length * length, device=self.owner.device).view(-1, length)
        rows = []
        for row, memory in zip(ids.to(self.owner.device), memories, strict=True):
            gists = (_features(memory).to(self.owner.device) - self.scale[0]) / self.scale[1]
            said = self._logits(gists[self.owner[columns]], self.place[columns]).argmax(-1)
            rows.append((said == row[columns]).flatten())
        return torch.stack(rows).cpu()

    def _logits(self, gists: Tensor, places: Tensor) -> Tensor:
        hidden = self.block(gists, places, self.rope)
        logits: Tensor = (hidden.to(self.head.dtype) @ self.head.T).float()
        return logits


def _features(memory: GistMemory) -> Tensor:
    """Keys and values of some layers side by side, shape (gists, features)."""
    n_layers = len(memory.keys)
    n_taken = min(n_layers, _MOST_LAYERS)
    layers = [place * (n_layers - 1) // max(n_taken - 1, 1) for place in range(n_taken)]
    both = [tensors[layer] for tensors in (memory.keys, memory.values) for layer in layers]
    return torch.cat([tensor[0].transpose(0, 1).flatten(1).float() for tensor in both], dim=1)


def _owners(memory: GistMemory, n_tokens: int) -> tuple[Tensor, Tensor]:
    """For each token the gist that covers it, and its place among that gist's tokens."""
    table = table_of(memory.segments)
    tokens = torch.arange(n_tokens)
    owner = torch.searchsorted(torch.tensor(table.stop.tolist()), tokens, right=True)
    return owner, tokens - torch.tensor(table.start.tolist())[owner]
