"""`exobus topology`: the nodes, the links between them, and the layers that each node holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import typer

from cli.options import ApiKeyOption, ApiOption, JsonOption, NodeOption, failures_shown


def topology(
    as_json: JsonOption = False, api: ApiOption = None, api_key: ApiKeyOption = None, node: NodeOption = None
) -> None:
    """Show nodes, links, and which layers run where."""
    from cli.api_client import get
    from cli.local_nodes import gateway

    with failures_shown():
        body = get(gateway(api, api_key, node), "/v1/topology")
    typer.echo(json.dumps(body) if as_json else show(body))


def show(body: Mapping[str, Any]) -> str:
    """Format a topology as tables."""
    from cli.text import show_bytes, table

    names = {node["node_id"]: node["name"] for node in body["nodes"]}
    nodes = [
        (
            node["name"] + (" *" if node["node_id"] == body["node_id"] else ""),
            node["node_id"],
            node["capabilities"]["engine"] or "measuring",
            show_bytes(node["capabilities"]["memory_available"]),
            node["api"],
        )
        for node in body["nodes"]
    ]
    links = [
        (names.get(link["source"], "?"), names.get(link["target"], "?"), f"{link['latency_ms']:.2f} ms")
        for link in body["links"]
    ]
    parts = [table(("NODE", "ID", "ENGINE", "FREE", "API"), nodes)]
    parts += [table(("FROM", "TO", "LATENCY"), links)] if links else []
    parts += [_instance(instance) for instance in body["instances"]]
    return "\n\n".join(parts)


def _instance(instance: Mapping[str, Any]) -> str:
    lines = [f"{instance['model']}  instance {instance['instance_id']}  epoch {instance['epoch']}"]
    for stage in instance["stages"]:
        first, last = stage["start_layer"], stage["end_layer"] - 1
        bar = "".join("█" if first <= layer <= last else "░" for layer in range(stage["n_layers"]))
        held = f"  {stage['positions']:,} positions" if stage["positions"] else ""
        lines.append(
            f"  {stage['node'] or stage['node_id']:<20} layers {first:>3}-{last:<3} {stage['engine']:<9} {bar}{held}"
        )
        lines += [f"  {'':<20} {why}"] if (why := stage.get("why")) else []
    return "\n".join(lines)
