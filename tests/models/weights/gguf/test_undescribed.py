"""`models.weights.gguf.undescribed`: GGUF files of other architectures get sizes for placement, or one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from models.errors import WeightsError
from models.own import own_card
from models.weights.reader import open_weights
from tests.support.gguf_models import FAMILIES, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, VOCAB, write_model
from tests.support.models import TinyVocabulary


@pytest.mark.parametrize("architecture", ["olmo", "olmo2", "cohere2", "qwen2moe"])
def test_card_is_made_from_the_header(architecture: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", architecture, "Q8_0", TinyVocabulary())
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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0),
        ("block_count", (1 << 32) - 1),
        ("block_count", float("inf")),
        ("attention__head_count", 0),
        ("attention__head_count", [-3, -3, -3, -3, -3]),
        ("attention__head_count", [4, 4]),
        ("attention__head_count_kv", [-5, 0, 0, 0, 0]),
        ("attention__key_length", float("nan")),
        ("embedding_length", (1 << 32) - 1),
        ("context_length", 0),
        ("attention__sliding_window", [-1]),
    ],
)
def test_impossible_size_is_refused_by_its_key(tmp_path: Path, key: str, value: Any) -> None:
    path = write_model(tmp_path / "model.gguf", "olmo", **{key: value})
    with pytest.raises(WeightsError, match=rf"model\.gguf gives olmo\.{key.replace('__', '[.]')} as .*; pick another"):
        own_card(path)


@pytest.mark.parametrize("change", [{"attention__head_count": 3}, {"attention__head_count_kv": 3}])
def test_heads_that_do_not_divide_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write_model(tmp_path / "model.gguf", "olmo", **change)
    with pytest.raises(WeightsError, match="has heads that do not divide evenly; pick another model"):
        own_card(path)


def test_model_without_attention_heads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gives mamba\.attention\.head_count as 0"):
        own_card(write_model(tmp_path / "model.gguf", "mamba", attention__head_count=0))


@pytest.mark.parametrize("shape", [(64,), (4, 4, 4)])
def test_embedding_that_is_no_matrix_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write_bare(tmp_path / "model.gguf", "olmo", {"token_embd.weight": shape})
    with pytest.raises(WeightsError, match="holds no whole model"):
        own_card(path)


@pytest.mark.parametrize("kind", ["adapter", "mmproj", "imatrix"])
def test_file_that_goes_with_a_model_is_refused_by_type(tmp_path: Path, kind: str) -> None:
    path = write_bare(tmp_path / "model.gguf", "olmo", {"blk.0.attn_q.weight.lora_a": (4, 8)}, kind)
    with pytest.raises(WeightsError, match=f"is of the type '{kind}' and goes with a model; point to the model's own"):
        own_card(path)


def test_older_projector_is_known_by_its_architecture(tmp_path: Path) -> None:
    path = write_bare(tmp_path / "model.gguf", "clip", {"v.patch_embd.weight": (4, 8)})
    with pytest.raises(WeightsError, match="is of the type 'clip' and goes with a model"):
        own_card(path)


def test_architecture_that_nobody_knows_is_named(tmp_path: Path) -> None:
    path = write_bare(tmp_path / "model.gguf", "abacus", {"token_embd.weight": (4, 8)})
    with pytest.raises(WeightsError, match=r"the architecture 'abacus', which neither exobus nor llama\.cpp knows"):
        own_card(path)


def write_bare(path: Path, architecture: str, shapes: dict[str, tuple[int, ...]], kind: str = "") -> Path:
    """Write tensors of zeros, and no sizes."""
    writer = GGUFWriter(str(path), architecture)
    if kind:
        writer.add_type(kind)
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
