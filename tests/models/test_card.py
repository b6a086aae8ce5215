"""`models.card`: the shipped cards state the true sizes of their models."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.shard import Shard, whole
from models.architecture import Architecture
from models.card import FolderSource, ModelCard, compare_sizes
from models.catalogue import DEFAULT_MODEL, Catalogue
from models.errors import WrongCard
from models.families import described
from models.settings import Settings
from models.sizes import FLOAT32_BYTES, layer_bytes, model_sizes
from models.weights.checkpoint import tensor_names
from models.weights.reader import open_weights
from models.weights.safetensors_weights import folder_model
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


def architecture_of(card: ModelCard) -> Architecture:
    """Describe a model of the card's own sizes."""
    return described(
        Settings(
            {
                "model_type": card.family,
                "num_hidden_layers": card.n_layers,
                "hidden_size": card.hidden_size,
                "num_attention_heads": card.n_heads,
                "num_key_value_heads": card.n_kv_heads,
                "head_dim": card.head_dim,
                "intermediate_size": INTERMEDIATE_SIZES[card.id],
                "vocab_size": card.vocab_size,
                "max_position_embeddings": card.context_length,
                "tie_word_embeddings": card.tied_embedding,
            },
            card.id,
        )
    )


def check_sizes(card: ModelCard, architecture: Architecture) -> None:
    """Fail if a card has not the sizes of a model."""
    compare_sizes(card, model_sizes(architecture), Path("the model"))
    assert (card.context_length, card.tied_embedding) == (architecture.context_length, architecture.tied_embedding)
    assert card.layer_bytes == layer_bytes(architecture)
    assert card.embedding_bytes == FLOAT32_BYTES * architecture.vocab_size * architecture.hidden_size


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_card_states_the_sizes_of_its_architecture(card: ModelCard) -> None:
    check_sizes(card, architecture_of(card))


def test_default_card_matches_its_file() -> None:
    card = Catalogue.load().get(DEFAULT_MODEL)
    path = default_model_path()
    weights = open_weights(path)
    architecture = weights.architecture
    names = tensor_names(architecture, whole(card.id, card.n_layers))
    resident = sum(weights.tensor(name).nbytes for name in names)
    assert path.stat().st_size == card.size_bytes
    check_sizes(card, architecture)
    assert (architecture.n_layers, architecture.hidden_size, architecture.vocab_size) == (30, 576, 49152)
    assert resident == card.shard_bytes(whole(card.id, card.n_layers)) + 4 * architecture.hidden_size


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
    compare_sizes(card, folder_model(folder).sizes, folder)
    with pytest.raises(WrongCard, match=rf"tiny says that its {field} is {value}, but that of \S+tiny is \w+; correct"):
        compare_sizes(wrong, folder_model(folder).sizes, folder)


def test_card_may_shorten_the_context(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny")
    card = msgspec.structs.replace(tiny_card(FolderSource(folder), tied=False), context_length=256)
    compare_sizes(card, folder_model(folder).sizes, folder)


@given(st.sampled_from(CARDS), st.data())
def test_bytes_of_tiling_shards_add_up(card: ModelCard, data: st.DataObject) -> None:
    inner = data.draw(st.sets(st.integers(1, card.n_layers - 1), max_size=4))
    cuts = [0, *sorted(inner), card.n_layers]
    parts = [card.shard_bytes(Shard(card.id, start, end, card.n_layers)) for start, end in pairwise(cuts)]
    all_of_it = card.shard_bytes(whole(card.id, card.n_layers))
    copied = card.embedding_bytes if inner and card.tied_embedding else 0
    assert sum(parts) == all_of_it + copied
