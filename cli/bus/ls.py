"""`exobus bus ls`: the state of a node's hub, and of the hubs of all nodes linked to it."""

from __future__ import annotations

import asyncio
import json

import msgspec
import typer

from bus.client import BusClient, RequestError
from bus.messages import HubDescribe, HubState
from cli.text import table

ASK_TIMEOUT_S = 3.0


async def run(bus: BusClient, *, as_json: bool) -> None:
    """Print the state of the node's hub and of its peers' hubs. A peer that does not answer is named on stderr."""
    own = await bus.request("hub", HubDescribe(), HubState, ASK_TIMEOUT_S)
    others = await asyncio.gather(*(_ask(bus, peer.node_id, peer.name) for peer in own.peers))
    states = [own, *(state for state in others if state is not None)]
    if as_json:
        typer.echo(json.dumps([msgspec.to_builtins(state) for state in states]))
        return
    typer.echo("\n\n".join(show(state) for state in states))


def show(state: HubState) -> str:
    """Format the state of one hub: its address, actors, links, subscriptions and counters."""
    lines = [f"{state.name}  {state.node_id}  {state.endpoint}"]
    actors = table(("ACTOR", "PID"), [(actor.name, str(actor.pid)) for actor in state.actors])
    lines += [f"  {line}" for line in actors.splitlines()]
    lines += [f"  linked to {peer.name}  {peer.node_id}  {peer.endpoint}" for peer in state.peers]
    lines += [f"  subscribed: {', '.join(kind or '(everything)' for kind in state.subscriptions)}"]
    lines += [f"  {name}: {count}" for name, count in sorted(state.counters.items())]
    return "\n".join(lines)


async def _ask(bus: BusClient, node_id: str, name: str) -> HubState | None:
    try:
        return await bus.request(f"{node_id}/hub", HubDescribe(), HubState, ASK_TIMEOUT_S)
    except RequestError as error:
        typer.echo(f"node {name} did not answer: {error.message}", err=True)
        return None
