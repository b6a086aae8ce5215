"""The routes that report on the node and its cluster, in no API family's shape: `/health` and `/v1/topology`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bus.client import BusClient, RequestError
from bus.messages import HubDescribe, HubState, TopologyGet, TopologyState
from cluster.placement import Instance
from cluster.room import InstanceUse
from common.config import NodeConfig
from common.version import running_version
from gateway.core.errors import error_of_request
from gateway.http.json_response import JsonResponse
from gateway.http.middleware import OPEN_PATH

ASK_TIMEOUT_S = 3.0
NEEDED_ACTORS = frozenset({"node", "topology", "download"})  # without them no chat can be answered
HEARD_S = 3.0  # an actor registers with its hub every second


class NodeRoutes:
    """Reports what the node's hub and topology actor know."""

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        self._config = config
        self._bus = bus
        self._version = running_version()

    @property
    def routes(self) -> list[Route]:
        """Both routes."""
        return [Route("/v1/topology", self.topology), Route(OPEN_PATH, self.health)]

    async def topology(self, request: Request) -> Response:
        """Return the graph of nodes and links, and which layers of which model each node holds."""
        try:
            state = await self._bus.request("topology", TopologyGet(), TopologyState, ASK_TIMEOUT_S)
        except RequestError as error:
            raise error_of_request(error) from None
        return JsonResponse(topology_body(self._config.node_id, state))

    async def health(self, request: Request) -> Response:
        """Return whether the node can answer a chat: its hub responds, and has just heard the actors that are needed.

        Only authenticated clients learn which node it is.
        """
        try:
            state = await self._bus.request("hub", HubDescribe(), HubState, ASK_TIMEOUT_S)
            ready = {actor.name for actor in state.actors if actor.silent_s < HEARD_S} >= NEEDED_ACTORS
        except RequestError:
            ready = False
        body: dict[str, Any] = {"status": "ok", "ready": ready}
        if request.state.authenticated:
            body |= {"version": self._version, "node": self._config.name, "node_id": self._config.node_id}
        return JsonResponse(body)


def topology_body(own_id: str, state: TopologyState) -> dict[str, Any]:
    """Return the topology in plain JSON, nodes and links as the bus has them. `own_id` is the responding node."""
    topology, uses = state.topology, state.uses or (InstanceUse(),) * len(state.instances)
    names = {node.node_id: node.name for node in topology.nodes}
    return {
        "version": topology.version,
        "node_id": own_id,
        "nodes": msgspec.to_builtins(topology.nodes),
        "links": msgspec.to_builtins(topology.links),
        "instances": [_instance_body(one, use, names) for one, use in zip(state.instances, uses, strict=True)],
    }


def _instance_body(instance: Instance, use: InstanceUse, names: Mapping[str, str]) -> dict[str, Any]:
    stages = [
        {
            "node_id": stage.node_id,
            "node": names.get(stage.node_id, ""),
            "engine": stage.engine,
            "why": stage.why,
            "start_layer": stage.shard.start_layer,
            "end_layer": stage.shard.end_layer,
            "n_layers": stage.shard.n_layers,
            "positions": stage.positions,
            "quantized_bits": stage.quantized_bits,
            "frees": frees,
        }
        for stage, frees in zip(instance.stages, use.frees or (0,) * len(instance.stages), strict=True)
    ]
    return {
        "instance_id": instance.instance_id,
        "model": instance.model_id,
        "epoch": instance.epoch,
        "idle_s": use.idle_s,
        "stages": stages,
    }
