"""`gateway.http.node_routes`, and unknown routes, of a real gateway."""

from __future__ import annotations

import httpx
import pytest

from bus.messages import TopologyState
from cluster.placement import Instance, PlacedStage
from cluster.room import InstanceUse
from cluster.shard import Shard
from cluster.topology import Topology
from gateway.http.node_routes import topology_body
from tests.support.gateway.gateway_rig import (
    NODE_ID,
    POSITIONS,
    Rig,
    eventually,
)


def test_health_names_the_node_and_its_readiness(rig: Rig) -> None:
    body = httpx.get(f"{rig.url}/health").json()
    assert (body["status"], body["node"], body["node_id"]) == ("ok", "rig", NODE_ID)
    assert eventually(lambda: httpx.get(f"{rig.url}/health").json()["ready"] is True)


def test_node_with_a_frozen_actor_is_not_ready(rig: Rig) -> None:
    def ready() -> bool:
        return httpx.get(f"{rig.url}/health").json()["ready"] is True

    assert eventually(ready)
    with rig.download.frozen():
        assert eventually(lambda: not ready())
    assert eventually(ready)


def test_topology_names_nodes_and_their_layers(rig: Rig) -> None:
    body = httpx.get(f"{rig.url}/v1/topology").json()
    assert [node["name"] for node in body["nodes"]] == ["rig"]
    (stage,) = body["instances"][0]["stages"]
    assert (stage["node"], stage["start_layer"], stage["end_layer"]) == ("rig", 0, 4)
    assert (stage["positions"], stage["quantized_bits"]) == (POSITIONS, 8)
    assert (stage["engine"], stage["why"]) == ("numpy", "it was asked for")


@pytest.mark.parametrize(("uses", "shown"), [((InstanceUse(7, (5, 6)),), (7, [5, 6])), ((), (0, [0, 0]))])
def test_topology_says_how_instances_are_used(uses: tuple[InstanceUse, ...], shown: tuple[int, list[int]]) -> None:
    stages = tuple(PlacedStage(node, Shard("m", at, at + 1, 2)) for at, node in enumerate("ab"))
    state = TopologyState(Topology(), (Instance("i", "m", 1, stages),), uses)
    (body,) = topology_body("a", state)["instances"]
    assert (body["idle_s"], [stage["frees"] for stage in body["stages"]]) == shown


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405)])
def test_unknown_route_gets_the_usual_error(rig: Rig, method: str, path: str, status: int) -> None:
    response = httpx.request(method, f"{rig.url}{path}")
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert (response.headers.get("allow") == "POST") == (status == 405)
