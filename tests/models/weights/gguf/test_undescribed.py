"""`models.weights.gguf.undescribed`: GGUF files of other architectures get sizes for placement, or one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import WeightsError
from models.own import own_card
from models.weights.reader import open_weights
from tests.support.gguf_models import FAMILIES, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, VOCAB, write_model


@pytest.mark.parametrize("architecture", ["olmo", "olmo2", "cohere2", "qwen2moe"])
def test_card_is_made_from_the_header(architecture: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", architecture, "Q8_0")
    card = own_card(path)
    family = FAMILIES[architecture]
    assert (card.family, card.engine, card.n_layers) == (architecture, "llamacpp", family.n_layers)
    assert (card.hidden_size, card.vocab_size, card.tied_embedding) == (HIDDEN, VOCAB, family.tied)
    assert (card.n_heads, card.n_kv_heads, card.head_dim) == (HEADS, KV_HEADS, HEAD_DIM)
    assert card.size_bytes == path.stat().st_size <= card.n_layers * card.layer_bytes


def test_other_engines_name_the_one_that_runs_it(tmp_path: Path) -> None:
    weights = open_weights(write_model(tmp_path / "model.gguf", "olmo2"))
    sentence = r"is of the family 'olmo2', which only the engine llamacpp runs; choose it$"
    with pytest.raises(WeightsError, match=sentence):
        weights.architecture  # noqa: B018


def test_encoder_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "olmo", attention__causal=False)
    with pytest.raises(WeightsError, match="is of the family 'olmo' and generates no text; pick another model"):
        own_card(path)


def test_model_without_attention_heads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not say its own sizes"):
        own_card(write_model(tmp_path / "model.gguf", "mamba", attention__head_count=0))
