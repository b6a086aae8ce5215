"""The screen of `exobus node`: its lines, and how it writes to a terminal and to anything else."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from bus.messages import HubState
from cli.local_nodes import default_parent
from cli.node.screen import NodeScreen, ready_lines
from cluster.capabilities import DeviceCapabilities
from cluster.roles import Role
from common.config import API_FILE, NodeConfig

CAPABILITIES = DeviceCapabilities(chip="A chip", memory_available=8 * 10**9, engine="numpy", why="the fastest here")


def config(**fields: object) -> NodeConfig:
    """Return a node's settings with these fields."""
    fixed: dict[str, object] = {"node_id": "00112233445566aa", "name": "one", "incarnation": 1}
    folders: dict[str, object] = {"run_dir": "/nowhere", "data_dir": str(default_parent() / "one"), "cache_dir": ""}
    return NodeConfig(**{**fixed, **folders, **fields})  # type: ignore[arg-type]  # the fields of NodeConfig


def hub(join_endpoint: str = "") -> HubState:
    """Return a hub with that join port."""
    return HubState("00112233445566aa", "one", "", join_endpoint=join_endpoint)


def screen(settings: NodeConfig, state: HubState, role: Role = Role.MEMBER, command: str = "exobus") -> str:
    return "\n".join(ready_lines(settings, state, CAPABILITIES, role, command))


def test_screen_describes_the_node_and_the_next_steps() -> None:
    text = screen(config(), hub())
    for part in (
        "node one is ready",
        "00112233445566aa",
        "numpy: the fastest here",
        "8.0 GB",
        "curl -N",
        "exobus bus sub",
    ):
        assert part in text


def test_standalone_node_shows_how_to_make_a_cluster() -> None:
    text = screen(config(), hub())
    assert "this node stands alone" in text
    assert "exobus cluster init" in text
    assert "exobus node --host auto --join CODE" in text


def test_member_shows_its_cluster_and_how_to_invite() -> None:
    join_endpoint = hub("tcp://10.0.0.5:52414")
    text = screen(config(cluster="home", host="10.0.0.5"), join_endpoint)
    assert "home, as a member, new nodes join at 10.0.0.5:52414" in text
    assert "exobus cluster invite" in text
    assert "--join CODE --peer 10.0.0.5:52414" in text
    assert "member, strict, new nodes" in screen(config(cluster="home", strict=True), join_endpoint)


@pytest.mark.parametrize(("name", "next_name"), [("one", "second"), ("second", "third")])
def test_proposed_node_has_another_name(name: str, next_name: str) -> None:
    text = screen(config(cluster="home", name=name), hub("tcp://127.0.0.1:52414"))
    assert f"exobus node --name {next_name} " in text


def test_commands_name_the_data_folder() -> None:
    for cluster, command in (("", "init"), ("home", "invite")):
        settings = config(cluster=cluster, data_dir="/srv/my node")
        assert f"exobus cluster {command} --data-dir '/srv/my node' " in screen(settings, hub())
        assert "--name second" not in screen(settings, hub())


def test_commands_are_shown_as_they_can_be_typed() -> None:
    text = screen(config(), hub(), command=".venv/bin/exobus")
    own = [line for line in text.splitlines() if "exobus run" in line or "cluster init" in line or "bus sub" in line]
    assert len(own) == 3
    assert all(".venv/bin/exobus " in line for line in own)


def test_curl_example_has_the_key_it_needs() -> None:
    assert "authorization" not in screen(config(), hub())
    text = screen(config(api_keys="/home/me/my keys"), hub())
    assert """-H "authorization: Bearer $(grep -m1 '^[^#]' '/home/me/my keys')" \\""" in text


@pytest.mark.parametrize(
    ("asked", "port", "shown"), [(None, 52415, False), (None, 40000, True), (40000, 40000, False), (0, 40000, False)]
)
def test_taken_api_port_is_reported(tmp_path: Path, asked: int | None, port: int, shown: bool) -> None:
    (tmp_path / API_FILE).write_text(f"http://127.0.0.1:{port}")
    assert ("(port 52415 was taken)" in screen(config(api_port=asked, run_dir=str(tmp_path)), hub())) == shown


def test_gateway_offers_chats_and_observer_does_not() -> None:
    gateway, observer = (screen(config(cluster="home"), hub(), role) for role in (Role.GATEWAY, Role.OBSERVER))
    assert "home, as a gateway" in gateway
    assert "home, as an observer" in observer
    assert ("exobus run" in gateway, "exobus run" in observer) == (True, False)
    for text in (gateway, observer):
        assert "cluster invite" not in text
        assert "exobus bus sub" in text


def test_file_gets_plain_lines_and_little_progress() -> None:
    out = io.StringIO()
    screen = NodeScreen(Role.MEMBER, out=out, color=True)
    screen.starting("starting")
    for done in range(100):
        screen.progress(f"fetching: {done} of 100 MB")
    screen.ready(config(), hub(), CAPABILITIES)
    screen.event("node two joined")
    text = out.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.count("fetching") <= 1
    assert text.endswith("node two joined\n")


class Terminal(io.StringIO):
    """A terminal that remembers what was written to it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("color", [False, True])
def test_terminal_replaces_one_line_of_progress(color: bool) -> None:
    out = Terminal()
    screen = NodeScreen(Role.MEMBER, out=out, color=color)
    screen.progress("10 %")
    screen.progress("20 %")
    assert out.getvalue() == "10 %\r\x1b[2K20 %"
    screen.ready(config(), hub(), CAPABILITIES)
    assert ("\x1b[2mengine" in out.getvalue()) == color
