"""Where models are cut follows from the engines of the nodes: no plan has a part that an engine would refuse."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.capabilities import DeviceCapabilities
from cluster.partitioning import RingMemoryWeightedPartitioningStrategy
from cluster.placement import DoesNotFit
from cluster.shard import whole
from cluster.topology import NodeRecord, Topology
from engines.cuts import UNSPLIT_BY_MLX, ModelPlan, able_nodes, plan_model, stage_starts, why_whole
from engines.llamacpp.cut_table import ARCHITECTURES, RULES, cut_rule, windowed_layers
from engines.settings import ENGINES
from models.card import Engine, ModelCard
from models.catalogue import Catalogue
from models.families import FAMILIES
from tests.support.model_servers import tiny_card

UNIT = 10**5
LLAMA = Catalogue.load().get("llama-3.2-3b")
memories = st.integers(1, 400)


def topology(*nodes: tuple[str, int], quantize: str = "auto") -> Topology:
    """Return nodes, each with its engine and so many units of memory."""
    graph = Topology()
    for number, (engine, memory) in enumerate(nodes):
        can = DeviceCapabilities(engine=engine, memory_available=memory * UNIT, precision="fast", quantize=quantize)
        graph = graph.with_node(NodeRecord(f"{number}", f"node-{number}", 1, 1, can))
    return graph


def card(family: str, n_layers: int = 8, engine: Engine = "") -> ModelCard:
    return msgspec.structs.replace(tiny_card(LLAMA.source), family=family, n_layers=n_layers, engine=engine)


def planned(model: ModelCard, graph: Topology) -> ModelPlan:
    able = able_nodes(model, graph)
    return plan_model(model, able, RingMemoryWeightedPartitioningStrategy(), stage_starts(model, able))


def check_cuts(family: str, plan: ModelPlan, graph: Topology) -> None:
    """Raise NotInParts if llama.cpp would refuse one of its stages."""
    for stage in plan.stages if len(plan.stages) > 1 else ():
        node = graph.node(stage.node_id)
        if node and node.capabilities.engine == "llamacpp":
            windowed_layers(cut_rule(ARCHITECTURES.get(family, family), stage.shard), None, stage.shard)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([*FAMILIES, *RULES, "bloom"]),
    st.sampled_from(["", "llamacpp"]),
    st.integers(1, 70),
    st.lists(memories, min_size=1, max_size=6),
)
def test_llamacpp_refuses_no_planned_cut(family: str, engine: Engine, n_layers: int, free: list[int]) -> None:
    graph = topology(*(("llamacpp", memory) for memory in free))
    with suppress(DoesNotFit):
        check_cuts(family, planned(card(family, n_layers, engine), graph), graph)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(FAMILIES)),
    st.integers(1, 70),
    st.lists(st.tuples(st.sampled_from(ENGINES), memories), min_size=1, max_size=6),
)
def test_mixed_ring_is_cut_where_llamacpp_may(family: str, n_layers: int, nodes: list[tuple[str, int]]) -> None:
    graph = topology(*nodes)
    with suppress(DoesNotFit):
        check_cuts(family, planned(card(family, n_layers), graph), graph)


def test_asked_llamacpp_is_cut_by_its_rule() -> None:
    graph = topology(("llamacpp", 300), ("llamacpp", 200))
    assert [stage.shard.end_layer for stage in planned(card("smollm3", 10), graph).stages] == [8, 10]
    assert [stage.shard.end_layer for stage in planned(card("qwen3", 10), graph).stages] == [6, 10]
    assert len(planned(card("gemma3_text", 62), graph).stages) == 1
    assert len(planned(card("gemma2"), graph).stages) == 1


def test_node_that_cannot_split_a_model_leaves_it_to_others() -> None:
    graph = topology(("llamacpp", 400), ("onnx", 100), ("numpy", 100))
    assert able_nodes(card("gemma2"), graph).node_ids == ("1", "2")
    assert able_nodes(card("smollm3"), graph).node_ids == ("0", "1", "2")
    assert len(planned(card("gemma2"), graph).stages) == 2


@pytest.mark.parametrize("family", UNSPLIT_BY_MLX)
def test_model_that_mlx_cannot_split_is_placed_whole(family: str) -> None:
    model, graph = card(family, engine="mlx"), topology(("mlx", 200), ("mlx", 300), ("onnx", 400))
    (stage,) = planned(model, graph).stages
    assert (stage.node_id, stage.shard) == ("1", whole(model.id, model.n_layers))
    assert f"{family!r} on one node only: {UNSPLIT_BY_MLX[family]}" in why_whole(model, graph)


def test_other_models_are_split_by_mlx() -> None:
    model, graph = card("glm4", engine="mlx"), topology(("mlx", 200), ("mlx", 300))
    assert len(planned(model, graph).stages) == 2
    assert why_whole(model, graph) == ""


@pytest.mark.parametrize(("free", "bits"), [((30_000, 30_000), 8), ((60_000, 13_000), 8), ((22_000, 20_000), 4)])
def test_ring_gets_the_most_bits_that_fit_it(free: tuple[int, int], bits: int) -> None:
    graph = topology(*(("onnx", memory) for memory in free))
    plan = planned(LLAMA, graph)
    assert (len(plan.stages), plan.auto_bits) == (2, bits)


def test_fixed_bits_are_not_reduced_to_fit() -> None:
    graph = topology(("onnx", 22_000), ("onnx", 20_000), quantize="8")
    with pytest.raises(DoesNotFit):
        planned(LLAMA, graph)
