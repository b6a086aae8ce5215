"""The shipped model cards are true, names lead to them, and a bad card is rejected with one sentence."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.shard import Shard, whole
from models.card import FolderSource, HubSource, ModelCard
from models.catalogue import DEFAULT_MODEL, Catalogue
from models.config import ModelConfig, config_from_hf
from models.errors import CatalogueError, UnknownModel
from models.weights.checkpoint import tensor_names, tensor_shape
from models.weights.reader import open_weights
from tests.support.models import default_model_path

INTERMEDIATE_SIZES = {
    "smollm2-135m": 1536,
    "smollm2-360m": 2560,
    "smollm2-1.7b": 8192,
    "llama-3.2-1b": 8192,
    "llama-3.2-3b": 8192,
    "tinyllama-1.1b": 5632,
}


CARDS = Catalogue.load().cards()
MINIMAL = """
id = "mine"
name = "Mine"
family = "llama"
n_layers = 4
hidden_size = 64
n_heads = 4
n_kv_heads = 2
head_dim = 16
vocab_size = 264
context_length = 512
layer_bytes = 1000
embedding_bytes = 500
size_bytes = 3000
"""


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


def test_default_model_comes_from_a_package_index() -> None:
    card = Catalogue.load().get(DEFAULT_MODEL)
    assert card.id == "smollm2-135m"
    assert "package" in repr(type(card.source)).lower()


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


def test_names_aliases_and_repositories_ignore_case() -> None:
    catalogue = Catalogue.load()
    assert catalogue.get("SmolLM2-135M").id == "smollm2-135m"
    assert catalogue.get("llama3.2:1b").id == "llama-3.2-1b"
    assert catalogue.get("HuggingFaceTB/SmolLM2-360M-Instruct").id == "smollm2-360m"


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownModel, match="`exobus models ls`") as caught:
        Catalogue.load().get("smolm2-135")
    assert caught.value.model_id == "smolm2-135"
    assert caught.value.near[0] == "smollm2-135m"
    assert len(caught.value.near) == len(set(caught.value.near))
    assert "smollm2-135m" in str(caught.value)


@given(st.text())
def test_unknown_name_gives_an_error_of_one_line(name: str) -> None:
    catalogue = Catalogue(CARDS)
    with pytest.raises(UnknownModel) as caught:
        catalogue.get(f"{name}?")
    assert "\n" not in str(caught.value)


@given(st.sampled_from(CARDS), st.data())
def test_bytes_of_tiling_shards_add_up(card: ModelCard, data: st.DataObject) -> None:
    inner = data.draw(st.sets(st.integers(1, card.n_layers - 1), max_size=4))
    cuts = [0, *sorted(inner), card.n_layers]
    parts = [card.shard_bytes(Shard(card.id, start, end, card.n_layers)) for start, end in pairwise(cuts)]
    all_of_it = card.shard_bytes(whole(card.id, card.n_layers))
    copied = card.embedding_bytes if inner and card.tied_embedding else 0
    assert sum(parts) == all_of_it + copied


def test_folder_of_cards_extends_the_shipped_ones(tmp_path: Path) -> None:
    source = '[source]\nkind = "folder"\npath = "weights"\n'
    (tmp_path / "mine.toml").write_text(MINIMAL + source)
    catalogue = Catalogue.load(tmp_path)
    assert catalogue.get("MINE").source == FolderSource(tmp_path / "weights")
    assert len(catalogue.cards()) == len(CARDS) + 1
    assert Catalogue.load(tmp_path / "mine.toml").get("mine") == catalogue.get("mine")


def test_user_card_replaces_a_shipped_one(tmp_path: Path) -> None:
    text = MINIMAL.replace('"mine"', '"smollm2-360m"') + '[source]\nkind = "hub"\nrepo = "a/b"\n'
    (tmp_path / "mine.toml").write_text(text)
    assert Catalogue.load(tmp_path).get("smollm2-360m").source == HubSource("a/b", "main")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("n_layers = 4", 'n_layers = "four"'), "n_layers"),
        (("n_layers = 4", "n_layers = 0"), "n_layers"),
        (("hidden_size = 64\n", ""), "hidden_size"),
        (('id = "mine"', 'id = "../mine"'), "id"),
        (('repo = "a/b"', 'repo = "../b"'), "repo"),
        (('repo = "a/b"', 'repository = "a/b"'), "repository"),
        (('repo = "a/b"', 'repo = "a/b"\nrevision = "../x"'), "revision"),
        (('kind = "hub"', 'kind = "ftp"'), "kind"),
        (('id = "mine"', 'id = "mine'), "TOML"),
        (('id = "mine"', 'id = "mine"\naliases = ["A B"]'), "aliases"),
    ],
)
def test_bad_card_is_rejected_naming_file_and_field(change: tuple[str, str], field: str, tmp_path: Path) -> None:
    text = MINIMAL + '[source]\nkind = "hub"\nrepo = "a/b"\n'
    assert change[0] in text
    (tmp_path / "bad.toml").write_text(text.replace(*change))
    with pytest.raises(CatalogueError, match=field) as caught:
        Catalogue.load(tmp_path)
    assert "bad.toml" in str(caught.value)


@pytest.mark.parametrize("member", ["../../x.gguf", "/x.gguf", "a/../x.gguf", "x.py"])
def test_package_member_must_be_a_plain_gguf_path(member: str, tmp_path: Path) -> None:
    source = f'[source]\nkind = "package"\nrequirement = "a==1"\nsha256 = "{"0" * 64}"\nmember = "{member}"\n'
    (tmp_path / "bad.toml").write_text(MINIMAL + source)
    with pytest.raises(CatalogueError, match="member"):
        Catalogue.load(tmp_path)
