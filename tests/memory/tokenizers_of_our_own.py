"""Tiny tokenizers trained in the test process: byte-level BPE, SentencePiece-like in three manners, and whole words."""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "Question: what is the capital of Bahrain? Answer: Manama",
    "日本語のテスト, naïve café, 10 €",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _wrap(backend, **settings):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **settings
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def byte_level():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    tokenizer = _wrap(backend)
    tokenizer.add_tokens(["<tool_call>", "ibuprofen"])
    return tokenizer


def sentencepiece_like(scheme):
    """`first` and `always` by the pre-tokenizer, `legacy` by the normalizer, as converted Llama tokenizers do."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if scheme == "legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)]
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=500, special_tokens=tokens, show_progress=False))
    spec = json.loads(backend.to_str())  # bytes are words of the model, not added tokens
    spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["content"].startswith("<0x")]
    return _wrap(Tokenizer.from_str(json.dumps(spec)))


def whole_words():
    """A model that knows special tokens as words, so that merely not looking for them does not help."""
    words = {word: number for number, word in enumerate([*SPECIAL, "a", "b", "<", "/s>", "|im_end|>"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(SPECIAL)
    return _wrap(backend)
