"""Unloads a model from the memory of all nodes, by a node here."""

from __future__ import annotations

from bus.client import BusClient
from bus.messages import InstanceUnload, RequestDone
from cli.api_client import Api, ApiRefused, get, model_path
from cli.local_nodes import choose_node, gateway
from cli.models.tables import loaded_models
from cli.observer import observe
from cli.options import failures_shown

UNLOAD_TIMEOUT_S = 60.0


def unload_model(name: str, node: str | None) -> str:
    """Unload what stands of a model. Returns a sentence. Ends the command on a failure, also if it is in use."""
    config = choose_node(node)
    with failures_shown():
        model_id = _loaded_id(gateway(None, None, config.node_id), name)

    async def command(bus: BusClient) -> None:
        await bus.request("node", InstanceUnload(model_id), RequestDone, UNLOAD_TIMEOUT_S)

    observe(config, command)
    return f"{model_id} is unloaded; the next request loads it again"


def _loaded_id(api: Api, name: str) -> str:
    """Return the id of the model that a name stands for, or the name if it stands for none: the node refuses it."""
    if name in loaded_models(get(api, "/v1/topology")):
        return name
    try:
        return str(get(api, model_path(name))["id"])
    except ApiRefused:
        return name
