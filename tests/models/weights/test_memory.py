"""What a shard takes on a node follows from its engine, and is never below what the engine then holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.capabilities import DeviceCapabilities, EngineCapability
from cluster.shard import Shard, whole
from engines.settings import ENGINES, PRECISIONS, QUANTIZE
from models.card import HubSource, ModelCard
from models.catalogue import DEFAULT_MODEL, Catalogue
from models.weights.memory import AUTO_BITS, least_bytes, named_bits, rounded_to, weight_bytes
from models.weights.packed_sizes import form_named, packed_sizes
from models.weights.quantized import BlockForm
from models.weights.reader import open_weights
from tests.support.family_models import tiny_architecture
from tests.support.models import default_model_path

CARDS = [card for card in Catalogue.load().cards() if card.sized]
LLAMA = Catalogue.load().get("llama-3.2-3b")
GB = 10**9
ROOT = Path(__file__).parents[3]
RUNTIME_BYTES = 64 << 20
"""What ONNX Runtime itself takes beside the weights of a model, at most."""

nodes = st.builds(
    DeviceCapabilities,
    memory_available=st.integers(0, 1 << 36),
    engine=st.sampled_from(["", *ENGINES]),
    precision=st.sampled_from(PRECISIONS),
    quantize=st.sampled_from(QUANTIZE),
)


def fast(memory: int = 1 << 40, quantize: str = "auto") -> DeviceCapabilities:
    return DeviceCapabilities(memory_available=memory, engine="onnx", precision="fast", quantize=quantize)


@given(st.data(), st.sampled_from(CARDS), nodes)
def test_more_layers_never_take_less(data: st.DataObject, card: ModelCard, node: DeviceCapabilities) -> None:
    start = data.draw(st.integers(0, card.n_layers - 1))
    end = data.draw(st.integers(start + 1, card.n_layers))
    larger = Shard(card.id, data.draw(st.integers(0, start)), data.draw(st.integers(end, card.n_layers)), card.n_layers)
    shard, bits = Shard(card.id, start, end, card.n_layers), rounded_to(card, larger, node)
    assert weight_bytes(card, shard, node, bits) <= weight_bytes(card, larger, node, bits)
    assert least_bytes(card, shard, node) > weight_bytes(card, shard, node)


@given(st.sampled_from(CARDS), nodes)
def test_fewer_bits_take_less(card: ModelCard, node: DeviceCapabilities) -> None:
    shard = whole(card.id, card.n_layers)
    none, eight, four = (weight_bytes(card, shard, node, bits) for bits in (0, 8, 4))
    assert four <= eight <= none


def test_sixteen_bit_model_takes_what_its_rounding_leaves() -> None:
    shard = whole(LLAMA.id, LLAMA.n_layers)
    found = [weight_bytes(LLAMA, shard, fast(quantize=quantize)) / GB for quantize in ("none", "8", "4")]
    assert found == pytest.approx([14.4, 4.4, 3.0], abs=0.05)
    assert weight_bytes(LLAMA, shard, DeviceCapabilities(engine="numpy")) == LLAMA.shard_bytes(shard)


def test_auto_rounds_to_four_bits_if_eight_do_not_fit() -> None:
    shard = whole(LLAMA.id, LLAMA.n_layers)
    eight = least_bytes(LLAMA, shard, fast())
    assert [rounded_to(LLAMA, shard, fast(free)) for free in (eight, eight - 1)] == [8, 4]
    assert least_bytes(LLAMA, shard, fast(eight - 1)) < eight


@given(st.sampled_from(CARDS), nodes, st.sampled_from(AUTO_BITS))
def test_placer_decides_only_what_is_auto(card: ModelCard, node: DeviceCapabilities, bits: int) -> None:
    shard = whole(card.id, card.n_layers)
    decides = node.engine == "onnx" and node.precision != "exact" and node.quantize == "auto"
    assert rounded_to(card, shard, node, bits) == (bits if decides else rounded_to(card, shard, node))


def test_bits_are_named_only_if_a_matrix_is_rounded() -> None:
    quantized = Catalogue.load().get(DEFAULT_MODEL)
    for card, bits in ((LLAMA, 4), (quantized, 0)):
        assert named_bits(card, whole(card.id, card.n_layers), fast(), 4) == bits
    assert named_bits(LLAMA, whole(LLAMA.id, LLAMA.n_layers), DeviceCapabilities(engine="numpy"), 4) == 0


@pytest.mark.parametrize(("engine", "precision"), [("onnx", "exact"), ("numpy", "fast"), ("mlx", "fast")])
def test_other_engines_round_nothing(engine: str, precision: str) -> None:
    node = DeviceCapabilities(engine=engine, precision=precision, quantize="8")
    assert rounded_to(LLAMA, whole(LLAMA.id, LLAMA.n_layers), node) == 0


def test_llamacpp_takes_the_size_of_the_files() -> None:
    card = Catalogue.load().get(DEFAULT_MODEL)
    node = DeviceCapabilities(engine="llamacpp")
    assert weight_bytes(card, whole(card.id, card.n_layers), node) == card.size_bytes
    halves = [weight_bytes(card, Shard(card.id, *half, card.n_layers), node) for half in ((0, 15), (15, 30))]
    assert card.size_bytes <= sum(halves) < 1.5 * card.size_bytes


def test_card_states_what_its_file_takes_packed() -> None:
    weights = open_weights(default_model_path())
    assert Catalogue.load().get(DEFAULT_MODEL).packed == packed_sizes(weights.architecture, weights.form)


def test_experts_count_as_float32() -> None:
    packed = packed_sizes(tiny_architecture("qwen3_moe"), lambda name: None)
    dense = packed_sizes(tiny_architecture("qwen3"), lambda name: None)
    assert packed.layer[1] > packed.layer[0] * 0.6
    assert dense.layer[1] < dense.layer[0] * 0.6


def test_engine_holds_what_was_counted() -> None:
    card, path = Catalogue.load().get(DEFAULT_MODEL), default_model_path()
    counted = weight_bytes(card, whole(card.id, card.n_layers), fast())
    command = [sys.executable, "-m", "tests.support.held_memory", "onnx", "fast", "0", str(path), str(card.n_layers)]
    held = int(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout)
    assert counted * 0.9 < held < counted + RUNTIME_BYTES


@pytest.mark.parametrize(
    ("quant", "form"),
    [
        ("Q4_K_M", BlockForm(4, 32, None)),
        ("UD-Q8_K_XL", None),
        ("IQ4_XS", BlockForm(8, 32, 128)),
        ("MXFP4_MOE", BlockForm(8, 32, 12)),
        ("IQ3_M", None),
        ("BF16", None),
    ],
)
def test_form_follows_from_the_name_of_a_quantization(quant: str, form: BlockForm | None) -> None:
    assert form_named(quant) == form


QWEN3_30B = ModelCard(
    id="qwen3-30b-a3b-q4_k_m",
    source=HubSource("org/repo", files=("Qwen3-30B-A3B-Q4_K_M.gguf",)),
    n_layers=48,
    hidden_size=2048,
    n_heads=32,
    n_kv_heads=4,
    head_dim=128,
    vocab_size=151936,
    context_length=40960,
    layer_bytes=2_480_000_000,
    embedding_bytes=1_244_659_712,
    tied_embedding=False,
    size_bytes=18_600_000_000,
)


def test_gguf_of_experts_fits_by_the_engine_that_keeps_it_packed() -> None:
    shard = whole(QWEN3_30B.id, QWEN3_30B.n_layers)
    with_it = msgspec.structs.replace(fast(), engines=(EngineCapability("llamacpp", ms_per_layer=1.0),))
    assert weight_bytes(QWEN3_30B, shard, fast()) > 100 * GB, "ONNX Runtime unpacks experts"
    assert weight_bytes(QWEN3_30B, shard, with_it) == QWEN3_30B.size_bytes
    for other in ({"precision": "exact"}, {"engines": (EngineCapability("llamacpp", detail="it is missing"),)}):
        assert weight_bytes(QWEN3_30B, shard, msgspec.structs.replace(with_it, **other)) > 100 * GB


def test_safetensors_are_never_counted_for_llamacpp() -> None:
    shard = whole(LLAMA.id, LLAMA.n_layers)
    with_it = msgspec.structs.replace(fast(), engines=(EngineCapability("llamacpp", ms_per_layer=1.0),))
    assert weight_bytes(LLAMA, shard, with_it, 0) == weight_bytes(LLAMA, shard, fast(), 0)
