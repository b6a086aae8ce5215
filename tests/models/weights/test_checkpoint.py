"""A shard needs exactly its own tensors."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cluster.shard import Shard, whole
from models.architecture import Architecture
from models.families import described
from models.settings import Settings
from models.weights.checkpoint import tensor_names, tensor_shapes
from tests.support.models import TinyShape


def tiny_architecture(**changes: Any) -> Architecture:
    return described(Settings(TinyShape(**changes).config("float32"), "tiny"))


def test_llama_checkpoint_has_its_known_tensors() -> None:
    architecture = tiny_architecture(n_layers=1, tie=False, attention_bias=True, mlp_bias=True)
    hidden, queries, keys, inner, vocabulary = 64, 64, 32, 128, 264
    layer = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "self_attn.q_proj.bias": (queries,),
        "self_attn.k_proj.bias": (keys,),
        "self_attn.v_proj.bias": (keys,),
        "self_attn.o_proj.bias": (hidden,),
        "mlp.gate_proj.bias": (inner,),
        "mlp.up_proj.bias": (inner,),
        "mlp.down_proj.bias": (hidden,),
    }
    expected = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        **{f"model.layers.0.{name}": shape for name, shape in layer.items()},
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    assert tensor_shapes(architecture, whole("tiny", 1)) == expected


@given(st.integers(1, 12), st.booleans(), st.booleans(), st.data())
def test_tiling_shards_share_only_a_tied_embedding(n_layers: int, tie: bool, bias: bool, data: st.DataObject) -> None:
    architecture = tiny_architecture(n_layers=n_layers, tie=tie, attention_bias=bias, mlp_bias=bias)
    inner = data.draw(st.sets(st.integers(1, n_layers), max_size=5)) - {n_layers}
    cuts = [0, *sorted(inner), n_layers]
    parts = [tensor_names(architecture, Shard("tiny", start, end, n_layers)) for start, end in pairwise(cuts)]
    named = [name for part in parts for name in part]
    assert set(named) == set(tensor_names(architecture, whole("tiny", n_layers)))
    shared = 1 if tie and len(parts) > 1 else 0
    assert len(named) == len(set(named)) + shared
