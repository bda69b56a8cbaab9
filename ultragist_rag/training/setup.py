"""Make what a training run starts from: tokenizer, model, gist modules, samples.

Is        the one place that decides between a model from scratch and a base from disk or hub.
Flow      config, samples -> [setup] -> loop.
Change    the architecture or the tokenizer of models trained from scratch.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch

from ultragist_rag.config import GistConfig
from ultragist_rag.modeling.attach import Attachment, attach
from ultragist_rag.modeling.loading import load
from ultragist_rag.training.config import TrainConfig
from ultragist_rag.training.jsonl import JsonlSource
from ultragist_rag.training.processes import alike, whole
from ultragist_rag.training.samples import Recipe, Sample, SampleSource

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|end|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}Question: {{ message['content'] }}\nAnswer:"
    "{% else %} {{ message['content'] }}{{ eos_token }}\n{% endif %}{% endfor %}"
)
_TOKENIZER_SHARES = (("profile", 0.3), ("factbook", 0.3), ("text", 0.4))


@runtime_checkable
class Source(Protocol):
    """Anything that draws samples."""

    def draw(self, recipe: Recipe, rng: random.Random) -> Sample:
        """Draw one sample."""


def make_source(config: TrainConfig) -> Source:
    """The sample source that the config names."""
    if config.source == "countries":
        source = SampleSource(config.data, config.texts, config.questions)
        if any(stage.real_words for stage in config.stages):
            _ = source.words  # made once, before there are workers, and refused here if the texts have none
        return source
    return JsonlSource(config.data)


def make_tokenizer(config: TrainConfig, source: Source) -> Any:
    """Byte-level BPE with single digits, trained on samples; or the base's own.

    Returns:
        A fast Hugging Face tokenizer.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if config.base:
        return AutoTokenizer.from_pretrained(config.base, revision=config.revision)
    path = config.output / "tokenizer.json"
    if not path.is_file():
        config.output.mkdir(parents=True, exist_ok=True)
        _train_tokenizer(config, source).save(str(path))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token=BOS, eos_token=EOS, pad_token=PAD)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)]
    )
    tokenizer.model_max_length = config.model.get("max_position_embeddings", 2048)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _train_tokenizer(config: TrainConfig, source: Source) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(config, source), trainer)
    return tokenizer


def _tokenizer_texts(config: TrainConfig, source: Source) -> Iterator[str]:
    rng = random.Random(config.seed)
    shares = _TOKENIZER_SHARES if config.source == "countries" else (("text", 1.0),)
    for kind, share in shares:
        for _ in range(round(share * config.tokenizer_samples)):
            sample = source.draw(Recipe({kind: 1.0}, (1, 1), (4, 11), 20), rng)
            yield sample.documents[0]
            yield from (f"Question: {question}\nAnswer: {answer}" for question, answer in sample.pairs[:4])


def make_attachment(config: TrainConfig, tokenizer: Any) -> tuple[Attachment, float]:
    """A Llama model with random weights, or the base from a folder or hub id, with gist modules.

    A base that comes with gist parameters is trained on from them; a frozen base's gist parameters are float32.

    Returns:
        The model, and the `source_bias` of its answers: that of the config, else of the base.

    Raises:
        CheckpointError: If the base cannot be loaded.
        UnsupportedModelError: If gist modules cannot be added to it.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    gist = GistConfig.from_dict(config.gist) if config.gist else None
    torch.manual_seed(config.seed)  # gist parameters of a low rank are random, too
    if config.base:
        dtype = getattr(torch, config.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*untrained.*")
            base = load(config.base, gist, {"revision": config.revision, "dtype": dtype})
        for parameter in base.attachment.parameters().values():
            parameter.data = parameter.data.float()
        return base.attachment, base.source_bias if config.source_bias is None else config.source_bias
    settings = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **config.model,
    }
    return attach(LlamaForCausalLM(LlamaConfig(**settings)), gist or GistConfig()), config.source_bias or 0.0


def checkpoint_layers(model: Any) -> None:
    """Compute activations again in the backward pass; transformers renamed the switch after 5.3."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def copy_base_into_gists(attachment: Attachment) -> None:
    """Make the gist parameters copies of the base projections and of the end token's embedding, as they are now."""
    end = attachment.model.config.eos_token_id
    sources = dict(attachment.model.named_parameters())
    with torch.no_grad():
        for name, value in attachment.parameters().items():
            if name.endswith("embed_tokens.weight"):
                value.copy_(alike(whole(attachment.decoder.embed_tokens.weight)[end : end + 1], value))
            elif attachment.config.rank is None:
                value.copy_(sources[name.replace("ultragist_", "")])
