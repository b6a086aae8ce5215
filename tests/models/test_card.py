"""`models.card`: the shipped cards state the true sizes of their models."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.shard import Shard, whole
from models.card import FolderSource, ModelCard, compare_sizes
from models.catalogue import DEFAULT_MODEL, Catalogue
from models.config import ModelConfig, config_from_folder, config_from_hf
from models.errors import WrongCard
from models.weights.checkpoint import tensor_names, tensor_shape
from models.weights.reader import open_weights
from tests.support.model_servers import tiny_card
from tests.support.models import default_model_path, write_tiny_llama

INTERMEDIATE_SIZES = {
    "smollm2-135m": 1536,
    "smollm2-360m": 2560,
    "smollm2-1.7b": 8192,
    "llama-3.2-1b": 8192,
    "llama-3.2-3b": 8192,
    "tinyllama-1.1b": 5632,
}
CARDS = tuple(card for card in Catalogue.load().cards() if card.sized)


def config_of(card: ModelCard) -> ModelConfig:
    """Make a configuration of the card's own sizes."""
    return config_from_hf(
        {
            "model_type": card.family,
            "num_hidden_layers": card.n_layers,
            "hidden_size": card.hidden_size,
            "num_attention_heads": card.n_heads,
            "num_key_value_heads": card.n_kv_heads,
            "head_dim": card.head_dim,
            "intermediate_size": INTERMEDIATE_SIZES[card.id],
            "vocab_size": card.vocab_size,
        },
        {},
        card.id,
    )


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_bytes_of_a_card_follow_from_its_sizes(card: ModelCard) -> None:
    config = config_of(card)
    names = tensor_names(config, Shard(card.id, 1, 2, card.n_layers))
    assert card.layer_bytes == 4 * sum(prod(tensor_shape(config, name) or ()) for name in names)
    assert card.embedding_bytes == 4 * card.vocab_size * card.hidden_size


def test_default_card_matches_its_file() -> None:
    card = Catalogue.load().get(DEFAULT_MODEL)
    path = default_model_path()
    with open_weights(path) as weights:
        config = weights.config
        names = tensor_names(config, whole(card.id, card.n_layers))
        resident = sum(weights.tensor(name).nbytes for name in names)
    assert path.stat().st_size == card.size_bytes
    assert (config.n_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    assert (config.n_heads, config.n_kv_heads, config.head_dim) == (card.n_heads, card.n_kv_heads, card.head_dim)
    assert config.context_length == card.context_length
    assert resident == card.shard_bytes(whole(card.id, card.n_layers)) + 4 * config.hidden_size


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_layers", 5),
        ("hidden_size", 128),
        ("n_heads", 8),
        ("n_kv_heads", 4),
        ("head_dim", 32),
        ("vocab_size", 263),
        ("context_length", 513),
        ("tied_embedding", True),
    ],
)
def test_card_that_differs_from_its_model_is_refused(tmp_path: Path, field: str, value: int) -> None:
    folder = write_tiny_llama(tmp_path / "tiny", tie=False)
    card = tiny_card(FolderSource(folder), tied=False)
    wrong = msgspec.structs.replace(card, **{field: value})
    compare_sizes(card, config_from_folder(folder), folder)
    with pytest.raises(WrongCard, match=rf"tiny says that its {field} is {value}, but that of \S+tiny is \w+; correct"):
        compare_sizes(wrong, config_from_folder(folder), folder)


def test_card_may_shorten_the_context(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny")
    card = msgspec.structs.replace(tiny_card(FolderSource(folder), tied=False), context_length=256)
    compare_sizes(card, config_from_folder(folder), folder)


@given(st.sampled_from(CARDS), st.data())
def test_bytes_of_tiling_shards_add_up(card: ModelCard, data: st.DataObject) -> None:
    inner = data.draw(st.sets(st.integers(1, card.n_layers - 1), max_size=4))
    cuts = [0, *sorted(inner), card.n_layers]
    parts = [card.shard_bytes(Shard(card.id, start, end, card.n_layers)) for start, end in pairwise(cuts)]
    all_of_it = card.shard_bytes(whole(card.id, card.n_layers))
    copied = card.embedding_bytes if inner and card.tied_embedding else 0
    assert sum(parts) == all_of_it + copied
