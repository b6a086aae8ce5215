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
from models.sizes import card_sizes
from models.weights.checkpoint import tensor_names
from models.weights.reader import open_weights
from models.weights.safetensors_weights import folder_architecture
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
CARDS = Catalogue.load().cards()


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


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_card_states_the_sizes_of_its_architecture(card: ModelCard) -> None:
    sizes = card_sizes(architecture_of(card))
    assert {name: getattr(card, name) for name in sizes} == sizes


def test_default_card_matches_its_file() -> None:
    card = Catalogue.load().get(DEFAULT_MODEL)
    path = default_model_path()
    with open_weights(path) as weights:
        architecture = weights.architecture
        names = tensor_names(architecture, whole(card.id, card.n_layers))
        resident = sum(weights.tensor(name).nbytes for name in names)
    assert path.stat().st_size == card.size_bytes
    sizes = card_sizes(architecture)
    assert {name: getattr(card, name) for name in sizes} == sizes
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
    compare_sizes(card, folder_architecture(folder), folder)
    with pytest.raises(WrongCard, match=rf"tiny says that its {field} is {value}, but that of \S+tiny is \w+; correct"):
        compare_sizes(wrong, folder_architecture(folder), folder)


def test_card_may_shorten_the_context(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny")
    card = msgspec.structs.replace(tiny_card(FolderSource(folder), tied=False), context_length=256)
    compare_sizes(card, folder_architecture(folder), folder)


@given(st.sampled_from(CARDS), st.data())
def test_bytes_of_tiling_shards_add_up(card: ModelCard, data: st.DataObject) -> None:
    inner = data.draw(st.sets(st.integers(1, card.n_layers - 1), max_size=4))
    cuts = [0, *sorted(inner), card.n_layers]
    parts = [card.shard_bytes(Shard(card.id, start, end, card.n_layers)) for start, end in pairwise(cuts)]
    all_of_it = card.shard_bytes(whole(card.id, card.n_layers))
    copied = card.embedding_bytes if inner and card.tied_embedding else 0
    assert sum(parts) == all_of_it + copied
