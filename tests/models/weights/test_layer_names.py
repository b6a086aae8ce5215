"""A shard's tensors are found by their names, whatever the family."""

from __future__ import annotations

from itertools import pairwise

import pytest

from cluster.shard import Shard
from models.weights.layer_names import layer_of, needed_names

LAYERS = [f"model.layers.{at}.block_sparse_moe.experts.{expert}.w1.weight" for at in range(3) for expert in range(2)]
ENDS = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.12.mlp.experts.3.w1.weight", 12),
        ("language_model.model.layers.7.self_attn.q_proj.weight", 7),
        ("transformer.h.4.attn.c_attn.weight", 4),
        ("model.transformer.blocks.2.ff_out.weight", 2),
        ("h.0.ln_1.bias", 0),
        ("model.norm.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_layer_of_a_tensor_is_in_its_name(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


def test_shards_share_the_checkpoint_without_a_rest() -> None:
    shards = [Shard("m", start, end, 3) for start, end in pairwise((0, 1, 2, 3))]
    parts = [needed_names(shard, LAYERS + ENDS) for shard in shards]
    ends = [ENDS[:1], [], ENDS[1:]]
    assert list(map(set, parts)) == [{*LAYERS[2 * at : 2 * at + 2], *ends[at]} for at in range(3)]


def test_last_stage_needs_the_embedding_without_a_head() -> None:
    assert "model.embed_tokens.weight" in needed_names(Shard("m", 2, 3, 3), LAYERS + ENDS[:2])


def test_shard_needs_one_tensor_of_each_kind_that_it_lacks() -> None:
    names = [*LAYERS, *ENDS, "model.layers.0.conv1d.weight", "model.layers.1.conv1d.weight"]
    assert "model.layers.0.conv1d.weight" in needed_names(Shard("m", 2, 3, 3), names)
    assert not any("conv1d" in name for name in needed_names(Shard("m", 2, 3, 3), LAYERS + ENDS))


def test_no_shard_needs_what_does_not_make_text() -> None:
    senses = ["vision_tower.encoder.layers.1.w", "model.visual.blocks.0.w", "audio_tower.norm", "model.layers.3.mtp.w"]
    for shard in (Shard("m", 0, 1, 3), Shard("m", 1, 2, 3), Shard("m", 2, 3, 3)):
        assert not set(senses) & set(needed_names(shard, LAYERS + ENDS + senses))
