"""A tiny engine with a tokenizer for the tests of asking; plain attributes, as asking needs no more."""

from types import SimpleNamespace

import torch
from plain import plain_model
from tokenizers_of_our_own import byte_level

from ultragist_rag.config import GistConfig
from ultragist_rag.modeling.attach import attach

TOKENIZER = byte_level()


def asking_engine(family="llama", tokenizer=TOKENIZER, lead_token=1, **model):
    """An engine over a random stock model whose vocabulary is that of the tokenizer."""
    size = {"vocab_size": 320, **model}
    config = GistConfig(window=64)
    attachment = attach(plain_model(family, **size), config)
    return SimpleNamespace(
        source_bias=0.0,
        attachment=attachment,
        tokenizer=tokenizer,
        config=config,
        fingerprint="",
        lead_token=lead_token,
    )


def greedy_by_hand(model, ids, n, processors=()):
    """The untouched model, the whole text again at every token."""
    ids = ids.clone()
    for _ in range(n):
        scores = model(ids[None]).logits[:, -1]
        for processor in processors:
            scores = processor(ids[None], scores)
        ids = torch.cat((ids, scores.argmax(-1)))
    return ids[-n:]
