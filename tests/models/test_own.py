"""A card is made of a user's own folder or file, whatever the file is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models.card import FolderSource, compare_sizes
from models.errors import CatalogueError, TokenizerError, WeightsError
from models.fingerprint import Fingerprints
from models.own import id_of, own_card
from models.weights.reader import open_weights, sizes_of
from tests.support.models import TinyVocabulary, write_tiny_gguf, write_tiny_llama


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("My Model-Q4_K_M.gguf", "my-model-q4_k_m"),
        ("Qwen3.GGUF", "qwen3"),
        ("tiny-00001-of-00003.gguf", "tiny"),
        ("sha256-0123", "sha256-0123"),
        ("Ünï", "n"),
        ("...", "model"),
    ],
)
def test_id_follows_from_the_name(name: str, model_id: str) -> None:
    assert id_of(Path("/models") / name) == model_id


def test_folder_gets_a_card_with_its_defaults(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "My Llama", tie=False)
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    card = own_card(folder)
    assert (card.id, card.source, card.defaults.temperature) == ("my-llama", FolderSource(folder), 0.5)
    weights = open_weights(folder)
    compare_sizes(card, sizes_of(weights), folder)


def test_gguf_without_a_suffix_is_found_by_its_magic(tmp_path: Path) -> None:
    blob = write_tiny_gguf(tmp_path / "tiny.gguf").rename(tmp_path / "sha256-0123")
    assert own_card(blob, "mine").source == FolderSource(blob)


def test_folder_of_one_split_model_stands_for_it(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", split_tensors=20)
    card = own_card(tmp_path)
    assert card.source == FolderSource(tmp_path / "tiny-00001-of-00002.gguf")
    assert card.size_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())


def test_folder_of_several_models_is_refused(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        write_tiny_gguf(tmp_path / name, n_layers=1)
    with pytest.raises(WeightsError, match=r"holds 2 models; give the path of one, such as \S+a\.gguf"):
        own_card(tmp_path)


def test_missing_path_and_bad_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not there; give the path"):
        own_card(tmp_path / "nothing")
    with pytest.raises(CatalogueError, match="field id is not lower-case"):
        own_card(write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=1), "No Id")


def test_fingerprint_tells_fine_tunes_apart(tmp_path: Path) -> None:
    one, same, other = (write_tiny_gguf(tmp_path / f"{name}.gguf", n_layers=1, seed=name == "c") for name in "abc")
    prints = Fingerprints()
    assert prints.get(one) == prints.get(same) != prints.get(other)
    assert prints.get(tmp_path / "nothing") == ""
    one.write_bytes(other.read_bytes() + b" ")
    assert prints.get(one) not in (prints.get(same), prints.get(other))


def test_folder_without_all_layers_is_refused(tmp_path: Path) -> None:
    config = write_tiny_llama(tmp_path) / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 4', '"num_hidden_layers": 5'))
    with pytest.raises(WeightsError, match=r"lacks model\.layers\.4\.\S+, which its settings ask for"):
        own_card(tmp_path)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("adapter_config.json", "adapter_model.safetensors"), r"is an adapter \(LoRA\), which exobus does not apply"),
        (("adapter_config.json", "config.json"), r"is an adapter \(LoRA\)"),
        (("pytorch_model.bin", "config.json"), "has its weights as PyTorch files only"),
        (("config.json",), "has neither safetensors files with a config.json nor GGUF files"),
        (("mmproj-F16.gguf",), r"has only GGUF files that go with a model \(mmproj, imatrix\)"),
        (("model.onnx",), "has neither safetensors files"),
    ],
)
def test_folder_of_something_else_says_what_it_is(tmp_path: Path, names: tuple[str, ...], sentence: str) -> None:
    whole = write_tiny_llama(tmp_path / "whole", n_layers=1)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes((whole / name).read_bytes() if name == "config.json" else b"?")
    with pytest.raises(WeightsError, match=f"folder {sentence}"):
        own_card(folder)


def test_file_that_the_index_names_is_missed(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path, shards=4)
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    sentence = (
        r"lacks model-00002-of-00004\.safetensors, which model\.safetensors\.index\.json names; fetch that file as well"
    )
    with pytest.raises(WeightsError, match=sentence):
        own_card(tmp_path)


def test_folder_without_a_tokenizer_is_not_added(tmp_path: Path) -> None:
    (write_tiny_llama(tmp_path, n_layers=1) / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"has no tokenizer\.json; copy the model's own into it"):
        own_card(tmp_path)


def test_part_of_a_folder_names_the_folder(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path, n_layers=1)
    with pytest.raises(WeightsError, match=r"model\.safetensors is a part of a model; give the path of its folder"):
        own_card(tmp_path / "model.safetensors")


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(WeightsError, match="is neither a model folder nor a GGUF file"):
        own_card(tmp_path / "pipe.gguf")


@pytest.mark.parametrize(
    ("vocabulary", "sentence"),
    [
        (TinyVocabulary(pre="abacus"), "splits texts by the rule 'abacus' .* whatever the engine"),
        (TinyVocabulary(pre=None), "does not say how its texts are split"),
        (TinyVocabulary(model="rwkv"), "holds a tokenizer of the kind 'rwkv'"),
    ],
)
def test_file_of_an_unknown_tokenizer_is_refused(tmp_path: Path, vocabulary: TinyVocabulary, sentence: str) -> None:
    with pytest.raises(TokenizerError, match=sentence):
        own_card(write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=1, vocabulary=vocabulary))
