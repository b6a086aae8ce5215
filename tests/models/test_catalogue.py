"""The shipped model cards are found by their names, and a bad card is rejected with one sentence."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.card import FolderSource, HubSource, ModelCard, encode_card, travelling
from models.catalogue import DEFAULT_MODEL, Catalogue, write_card
from models.errors import CatalogueError, UnknownModel
from models.families import FAMILIES
from models.names import CatalogueName, parse_name
from tests.support.model_servers import tiny_card

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


def test_default_model_comes_from_a_package_index() -> None:
    card = Catalogue.load().get(DEFAULT_MODEL)
    assert card.id == "smollm2-135m"
    assert "package" in repr(type(card.source)).lower()


def test_names_aliases_and_repositories_ignore_case() -> None:
    catalogue = Catalogue.load()
    assert catalogue.get("SmolLM2-135M").id == "smollm2-135m"
    assert catalogue.get("llama3.2:1b").id == "llama-3.2-1b"
    assert catalogue.get("HuggingFaceTB/SmolLM2-360M-Instruct").id == "smollm2-360m"


@pytest.mark.parametrize(
    ("text", "model_id"),
    [
        ("hf.co/unsloth/Llama-3.2-1B-Instruct", "llama-3.2-1b"),
        ("https://huggingface.co/unsloth/llama-3.2-1b-instruct/tree/main", "llama-3.2-1b"),
        ("ollama.com/library/qwen3:latest", "qwen3-8b"),
        ("llama3.2", "llama-3.2-3b"),
        ("smollm2-135m/", "smollm2-135m"),
    ],
)
def test_other_forms_of_a_name_find_its_card(text: str, model_id: str) -> None:
    assert Catalogue.load().get(text).id == model_id


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("llama3.3:8b", ("llama-3.3-70b",)),
        ("llama3.2:8b", ("llama-3.2-3b", "llama-3.2-1b")),
        ("smolm2-135m", ("smollm2-135m", "smollm2-360m", "smollm2-1.7b")),
    ],
)
def test_unknown_name_is_told_others_of_its_kind(text: str, near: tuple[str, ...]) -> None:
    with pytest.raises(UnknownModel) as caught:
        Catalogue.load().get(text)
    assert caught.value.near == near


def test_shipped_names_are_unique_and_come_from_somewhere() -> None:
    names = [name for card in CARDS for name in (card.id, *card.aliases)]
    assert len(CARDS) >= 40
    assert len(names) == len(set(names))
    assert all(card.license and card.params and card.family for card in CARDS)
    assert all(parse_name(name) == CatalogueName(name) for name in names)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_card_names_the_only_engine_of_its_family(card: ModelCard) -> None:
    """A card of the hub is asked for before its model is described."""
    family = FAMILIES.get(card.family)
    described = family is not None and not (family.gguf_only and isinstance(card.source, HubSource))
    assert card.engine == ("" if described else "mlx")


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


UNSIZED = 'id = "mine"\nfamily = "llama"\naliases = ["m"]\n[source]\nkind = "hub"\nrepo = "Tiny/Llama"\n'


def test_hub_card_needs_no_sizes(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(UNSIZED)
    assert not Catalogue.load(tmp_path).get("m").sized


def test_card_made_later_completes_one_without_sizes(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(UNSIZED)
    catalogue = Catalogue.load(tmp_path / "mine.toml", tmp_path / "made", [tmp_path / "own"])
    made = tiny_card(HubSource("tiny/llama", "0" * 40))
    write_card(tmp_path / "made", msgspec.structs.replace(made, id="mine"))
    card = catalogue.get("m")
    assert (card.aliases, card.n_layers, card.source) == (("m",), 4, made.source)
    write_card(tmp_path / "own", msgspec.structs.replace(made, id="mine", name="Own"))
    assert catalogue.get("mine").name == "Own"
    (tmp_path / "own" / "mine.json").unlink()
    assert catalogue.get("mine") == card


def test_unreadable_card_added_later_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    catalogue = Catalogue.load(None, tmp_path)
    write_card(tmp_path, tiny_card(FolderSource(tmp_path / "weights")))
    (tmp_path / "bad.json").write_text("{")
    assert catalogue.own() == (tiny_card(FolderSource(tmp_path / "weights")),)
    assert "bad.json" in caplog.text


@pytest.mark.parametrize("source", [HubSource("a/b"), FolderSource(Path("/x"))])
def test_card_of_a_message_never_names_a_folder(source: HubSource | FolderSource) -> None:
    card = tiny_card(source)
    assert travelling(card) == ("" if isinstance(source, FolderSource) else encode_card(card))
    if isinstance(source, FolderSource):
        with pytest.raises(CatalogueError, match="names a folder, which only this node's own may"):
            Catalogue(()).received("tiny", encode_card(card))
    else:
        assert Catalogue(()).received("tiny", encode_card(card)) == card
