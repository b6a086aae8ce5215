"""The one calm screen of `exobus node`: who this node is and what to do next, then one line for each event.

Writes to a terminal or, without colour and moving lines, to anything else.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TextIO

from bus.messages import HubState
from cli.local_nodes import default_parent
from cli.sizes import show_bytes
from cluster.capabilities import DeviceCapabilities
from cluster.roles import Role
from common.config import NodeConfig
from common.text_safety import one_line
from models.catalogue import DEFAULT_MODEL

PLAIN_EVERY_S = 5.0  # between lines of progress where they cannot replace each other
_ARTICLES = {Role.MEMBER: "a", Role.GATEWAY: "a", Role.OBSERVER: "an"}


class NodeScreen:
    """What `actors.supervisor.Screen` asks for."""

    def __init__(self, role: Role, out: TextIO | None = None, *, colour: bool = False) -> None:
        self._role = role
        self._out = out or sys.stdout
        self._moving = self._out.isatty()
        self._colour = colour and self._moving
        self._line = ""
        self._said_at = 0.0

    def starting(self, text: str) -> None:
        """The node is not up yet."""
        self.progress(text)

    def ready(self, config: NodeConfig, hub: HubState, capabilities: DeviceCapabilities) -> None:
        """The gateway answers and the engine is chosen."""
        self._clear()
        for line in ready_lines(config, hub, capabilities, self._role):
            self._out.write(self._painted(line) + "\n")
        self._out.flush()

    def progress(self, text: str) -> None:
        """One line that replaces the one before it, or now and then a line where nothing can be replaced."""
        text = one_line(text)
        if self._moving:
            self._clear()
            self._out.write(text)
            self._line = text
        elif time.monotonic() - self._said_at >= PLAIN_EVERY_S or not self._said_at:
            self._said_at = time.monotonic()
            self._out.write(text + "\n")
        self._out.flush()

    def event(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        self._out.write(f"{time.strftime('%H:%M:%S')}  {one_line(text)}\n")
        self._out.flush()

    def _clear(self) -> None:
        if self._line:
            self._out.write("\r\x1b[2K")
            self._line = ""

    def _painted(self, line: str) -> str:
        """Labels dimmed, so that the eye falls on what can be copied."""
        label, text = line[:10], line[10:]
        return f"\x1b[2m{label}\x1b[0m{text}" if self._colour and label.strip() else line


def ready_lines(config: NodeConfig, hub: HubState, capabilities: DeviceCapabilities, role: Role) -> list[str]:
    """The screen's lines, uncoloured. The join code is not among them."""
    api = config.api()
    return [
        "",
        f"exobus    node {config.name} is ready ({config.node_id})",
        *(_machine(capabilities) if role is Role.MEMBER else ()),
        f"cluster   {_cluster(config, hub, role)}",
        f"api       {api}/v1",
        "",
        *(_chat(api) if role is not Role.OBSERVER else ()),
        *_add_node(config, hub, role),
        f"look      exobus topology --api {api}   or   exobus bus sub '>' --node {config.name}",
        "stop      Ctrl-C",
        "",
    ]


def _machine(capabilities: DeviceCapabilities) -> tuple[str, str]:
    return (
        f"machine   {capabilities.chip or capabilities.model}, {show_bytes(capabilities.memory_available)} for models",
        f"engine    {capabilities.engine}: {capabilities.why}",
    )


def _cluster(config: NodeConfig, hub: HubState, role: Role) -> str:
    if not config.cluster:
        return "none; this node stands alone and nobody else reaches it"
    strict = ", strict" if config.strict else ""
    join_endpoint = f", others knock at {hub.join_endpoint.removeprefix('tcp://')}" if hub.join_endpoint else ""
    return f"{config.cluster}, as {_ARTICLES[role]} {role}{strict}{join_endpoint}"


def _chat(api: str) -> tuple[str, str, str]:
    body = f'{{"model":"{DEFAULT_MODEL}","stream":true,"messages":[{{"role":"user","content":"What is a ring?"}}]}}'
    return (
        f'chat      exobus run {DEFAULT_MODEL} "What is a ring?" --api {api}',
        f"          curl -N {api}/v1/chat/completions -H 'content-type: application/json' \\",
        f"               -d '{body}'",
    )


def _add_node(config: NodeConfig, hub: HubState, role: Role) -> tuple[str, ...]:
    """What to type to give this node a second one; only members can invite."""
    where = "" if Path(config.data_dir).parent == default_parent() else f" --data-dir {config.data_dir}"
    if role is not Role.MEMBER:
        return ()
    if not config.cluster:
        return (
            f"add node  exobus cluster init{where}   makes a join code; then start this node again with --host auto,",
            "          and on the other machine: exobus node --host auto --join CODE",
        )
    if not config.loopback:
        return (
            f"add node  exobus cluster invite{where}   prints the join code; then on the other machine:",
            f"          exobus node --host auto --join CODE --peer {hub.join_endpoint.removeprefix('tcp://')}",
        )
    here = () if where else ("add node  exobus node --name second   here",)
    label = "          " if here else "add node  "
    return (*here, f"{label}exobus cluster invite{where}   for another machine; start this node again with --host auto")
