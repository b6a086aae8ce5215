"""The screen of `exobus node`: what this node is and what to do next, then one line for each event.

Writes to a terminal, or, without color and moving lines, to anything else.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

from bus.messages import HubState
from cli.local_nodes import default_parent
from cli.text import show_bytes
from cluster.capabilities import DeviceCapabilities
from cluster.roles import Role
from common.config import DEFAULT_API_PORT, NodeConfig
from common.text_safety import one_line
from models.catalogue import DEFAULT_MODEL

PLAIN_EVERY_S = 5.0  # between lines of progress if they cannot replace each other
_ARTICLES = {Role.MEMBER: "a", Role.GATEWAY: "a", Role.OBSERVER: "an"}


class NodeScreen:
    """Implements `actors.screen.Screen`. `command` is `exobus` as the user can type it."""

    def __init__(self, role: Role, command: str = "exobus", out: TextIO | None = None, *, color: bool = False) -> None:
        self._role = role
        self._command = command
        self._out = out or sys.stdout
        self._moving = self._out.isatty()
        self._color = color and self._moving
        self._line = ""
        self._progress_at: float | None = None

    def starting(self, text: str) -> None:
        """Show that the node is not ready yet."""
        self.progress(text)

    def ready(self, config: NodeConfig, hub: HubState, capabilities: DeviceCapabilities) -> None:
        """Show what the node is and what to do next."""
        self._clear()
        for line in ready_lines(config, hub, capabilities, self._role, self._command):
            self._out.write(self._painted(line) + "\n")
        self._out.flush()

    def progress(self, text: str) -> None:
        """Replace the line of progress; on anything but a terminal, write a new line now and then."""
        text = one_line(text)
        if self._moving:
            self._clear()
            self._out.write(text)
            self._line = text
        elif self._progress_at is None or time.monotonic() - self._progress_at >= PLAIN_EVERY_S:
            self._progress_at = time.monotonic()
            self._out.write(text + "\n")
        self._out.flush()

    def event(self, text: str) -> None:
        """Write a line that stays."""
        self._clear()
        self._out.write(f"{time.strftime('%H:%M:%S')}  {one_line(text)}\n")
        self._out.flush()

    def _clear(self) -> None:
        if self._line:
            self._out.write("\r\x1b[2K")
            self._line = ""

    def _painted(self, line: str) -> str:
        """Dim the label of a line, so that the eye falls on what can be copied."""
        label, text = line[:10], line[10:]
        return f"\x1b[2m{label}\x1b[0m{text}" if self._color and label.strip() else line


def ready_lines(
    config: NodeConfig, hub: HubState, capabilities: DeviceCapabilities, role: Role, command: str = "exobus"
) -> list[str]:
    """Return the lines of the screen, without color. The join code is not among them."""
    api = config.api()
    return [
        "",
        f"exobus    node {config.name} is ready ({config.node_id})",
        *(_machine(capabilities) if role is Role.MEMBER else ()),
        f"cluster   {_cluster(config, hub, role)}",
        f"api       {api}/v1{_port_taken(config, api)}",
        "",
        *(_chat(config, api, command) if role is not Role.OBSERVER else ()),
        *_add_node(config, hub, role, command),
        f"look      {command} topology --api {api}   or   {command} bus sub '>' --node {config.name}",
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
        return "none; this node stands alone and no other machine reaches it"
    strict = ", strict" if config.strict else ""
    join_endpoint = f", new nodes join at {hub.join_endpoint.removeprefix('tcp://')}" if hub.join_endpoint else ""
    return f"{config.cluster}, as {_ARTICLES[role]} {role}{strict}{join_endpoint}"


def _port_taken(config: NodeConfig, api: str) -> str:
    taken = config.api_port is None and urlsplit(api).port not in (None, DEFAULT_API_PORT)
    return f"   (port {DEFAULT_API_PORT} was taken)" if taken else ""


def _chat(config: NodeConfig, api: str, command: str) -> list[str]:
    body = f'{{"model":"{DEFAULT_MODEL}","stream":true,"messages":[{{"role":"user","content":"What is a ring?"}}]}}'
    lines = [
        f'chat      {command} run {DEFAULT_MODEL} "What is a ring?" --api {api}',
        f"          curl -N {api}/v1/chat/completions -H 'content-type: application/json' \\",
    ]
    if config.api_keys:  # by the file's name: the key itself does not belong on a screen
        first_key = f"$(grep -m1 '^[^#]' {shlex.quote(config.api_keys)})"
        lines.append(f'               -H "authorization: Bearer {first_key}" \\')
    return [*lines, f"               -d '{body}'"]


def _add_node(config: NodeConfig, hub: HubState, role: Role, command: str) -> tuple[str, ...]:
    """Return what to type to give this node a second one; only members can invite."""
    shared = Path(config.data_dir).parent == default_parent()
    where = "" if shared else f" --data-dir {shlex.quote(config.data_dir)}"
    if role is not Role.MEMBER:
        return ()
    if not config.cluster:
        return (
            f"add node  {command} cluster init{where}   makes a join code; then restart this node with --host auto,",
            "          and on the other machine: exobus node --host auto --join CODE",
        )
    if not config.loopback:
        return (
            f"add node  {command} cluster invite{where}   prints the join code; then on the other machine:",
            f"          exobus node --host auto --join CODE --peer {hub.join_endpoint.removeprefix('tcp://')}",
        )
    invite = f"{command} cluster invite{where}   for another machine; restart this node with --host auto"
    if not shared:
        return (f"add node  {invite}",)
    name = "second" if config.name != "second" else "third"
    return f"add node  {command} node --name {name}   here", f"          {invite}"
