"""Nothing is downloaded by the default; vectors have length 1; what `fit` learned is saved with the index."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ultragist_rag import InputError
from ultragist_rag.rag import HashingEmbeddings, Passage, PassageIndex, load_embeddings

TEXTS = ["Norway sells oil.", "Norway sells fish and oil.", "Chad grows cotton.", "cotton cotton cotton"]


def test_rare_words_weigh_more_than_frequent_ones() -> None:
    embeddings = HashingEmbeddings()
    embeddings.fit(["Norway oil", "Norway fish", "Norway snow", "Chad cotton"])
    norway_oil, norway, oil = embeddings.embed_documents(["Norway oil", "Norway", "oil"])
    assert norway_oil @ oil > norway_oil @ norway > 0


def test_other_endings_of_a_word_are_near() -> None:
    embeddings = HashingEmbeddings()
    populated, population, cotton = embeddings.embed_documents(["populated", "population", "cotton"])
    assert populated @ population > 0.2 > abs(populated @ cotton)


def test_state_survives_json() -> None:
    fitted, other = HashingEmbeddings(), HashingEmbeddings()
    fitted.fit(TEXTS)
    assert not np.allclose(fitted.embed_documents(TEXTS), other.embed_documents(TEXTS))
    other.restore(json.loads(json.dumps(fitted.state())))
    np.testing.assert_allclose(fitted.embed_documents(TEXTS), other.embed_documents(TEXTS), atol=1e-6)


def test_text_of_stop_words_has_a_finite_vector() -> None:
    vectors = HashingEmbeddings().embed_documents(["the of and", ""])
    assert np.isfinite(vectors).all()
    assert (np.linalg.norm(vectors, axis=1) < 1).all()


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with mean pooling, saved as sentence-transformers save it."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", *sorted({word.strip(".") for text in TEXTS for word in text.split()})]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    folder = tmp_path_factory.mktemp("bert")
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = sentence_transformers.SentenceTransformer(str(folder))
    model.save(str(folder / "sentences"))
    return folder / "sentences"


def test_sentence_transformers_are_taken_by_name(sentence_model: Path, tmp_path: Path) -> None:
    embeddings = load_embeddings(f"sentence-transformers:{sentence_model}")
    vectors = embeddings.embed_documents(TEXTS)
    assert vectors.shape == (4, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    PassageIndex.build([Passage(text, "a", "", "") for text in TEXTS], embeddings).save(tmp_path)
    loaded = PassageIndex.load(tmp_path)
    assert loaded.search(TEXTS[2], k=1)[0][0].text == TEXTS[2]


def test_missing_sentence_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_embeddings(f"sentence-transformers:{tmp_path / 'nowhere'}")
