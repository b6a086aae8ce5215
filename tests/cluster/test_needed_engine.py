"""A model that only one engine runs is placed on the nodes that have it, and refused if there is none."""

from __future__ import annotations

from cluster.capabilities import DeviceCapabilities, EngineCapability
from cluster.needed_engine import no_engine, nodes_with_engine
from cluster.topology import NodeRecord, Topology


def topology_of(**nodes: DeviceCapabilities) -> Topology:
    topology = Topology()
    for name, capabilities in nodes.items():
        topology = topology.with_node(NodeRecord(name, name, 1, 1, capabilities))
    return topology


MEASURED = (EngineCapability("mlx", ms_per_layer=2.0), EngineCapability("tinygrad", detail="no compiler"))
NODES = topology_of(
    asked=DeviceCapabilities(engine="mlx"),
    measured=DeviceCapabilities(engine="onnx", engines=MEASURED),
    other=DeviceCapabilities(engine="numpy"),
    unknown=DeviceCapabilities(),
)


def test_nodes_that_chose_or_measured_an_engine_have_it() -> None:
    assert nodes_with_engine(NODES, "mlx") == {"asked", "measured"}
    assert nodes_with_engine(NODES, "tinygrad") == set()
    assert nodes_with_engine(NODES, "") == set(NODES.node_ids)


def test_sentence_names_each_node_and_its_engine() -> None:
    sentence = no_engine("glm", "glm4", "mlx", NODES)
    assert "only mlx may run glm (family glm4), and no node has it" in sentence
    assert "other uses numpy, unknown uses none yet; install it with `pip install -e '.[mlx]'`" in sentence


def test_sentence_of_many_nodes_stays_short() -> None:
    many = topology_of(**{f"n{number:03d}": DeviceCapabilities(engine="onnx") for number in range(200)})
    assert "n007 uses onnx, 192 more; install" in no_engine("glm", "glm4", "mlx", many)
