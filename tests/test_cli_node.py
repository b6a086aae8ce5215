"""`exobus node`: options become settings, or one sentence and an exit status; its screen."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.node_folder import open_folder
from bus.config import NodeConfig, ports_to_try
from bus.messages import HubState
from cli.node_process import Asked, BadOption, check, settings
from cli.screen import NodeScreen, add_node_command, ready_lines
from cli.sizes import parse_bytes
from cluster.capabilities import DeviceCapabilities
from tests.rig_ring import ROOT

CAPABILITIES = DeviceCapabilities(chip="A chip", memory_available=8 * 10**9, engine="numpy", why="the fastest here")


def exobus_node(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`exobus node` where it is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "cli", "node", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def config(**fields: object) -> NodeConfig:
    """A node's settings with these fields."""
    fixed: dict[str, object] = {"node_id": "00112233445566aa", "name": "one", "incarnation": 1}
    folders: dict[str, object] = {"run_dir": "/nowhere", "data_dir": "", "cache_dir": ""}
    return NodeConfig(**{**fixed, **folders, **fields})  # type: ignore[arg-type]  # the fields of NodeConfig


def hub(endpoint: str) -> HubState:
    """A hub that listens there."""
    return HubState("00112233445566aa", "one", endpoint)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("12GB", 12 * 10**9),
        ("1.5GiB", 3 << 29),
        ("512 mb", 512 * 10**6),
        ("4g", 4 * 10**9),
        ("1000", 1000),
        ("2KiB", 2048),
    ],
)
def test_a_size_is_read_as_people_write_it(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused_with_a_sentence(text: str) -> None:
    try:
        count = parse_bytes(text)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
        assert count >= 0
    assert not message or "12GB" in message


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        (Asked(host="0.0.0.0", insecure=True), "127.0.0.1"),
        (Asked(host="studio.local"), "no address"),
        (Asked(host="192.168.1.5"), "not encrypted"),
        (Asked(engine="abacus"), "numpy"),
        (Asked(memory="lots"), "12GB"),
        (Asked(memory="0"), "--memory"),
        (Asked(kv_memory="some"), "12GB"),
        (Asked(precision="sloppy"), "fast, exact"),
        (Asked(peers=("a:1", "b:99999")), "b:99999"),
        (Asked(peers=("a b:1",)), "host:port"),
        (Asked(cards=Path("/nowhere/at/all")), "--cards"),
        (Asked(name="../up"), "node name"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused_with_a_sentence(asked: Asked, word: str) -> None:
    with pytest.raises(Exception, match=word) as caught:
        check(asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("peer", ["127.0.0.1:52414", "studio.local:1", "[fe80::1]:52414", "tcp://mini:52414"])
def test_a_peer_is_named_as_host_and_port(peer: str) -> None:
    check(Asked(peers=(peer,)))


def test_the_network_is_opened_when_it_is_asked_for_in_so_many_words() -> None:
    check(Asked(host="192.168.1.5", insecure=True))
    with pytest.raises(BadOption):
        check(Asked(host="192.168.1.5", insecure=False))


def test_options_become_the_nodes_settings(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    asked = Asked(name="one", api_port=0, bus_port=7, memory="2GB", engine="numpy", peers=("tcp://mini:1",), threads=3)
    result = settings(asked, folder)
    folder.close()
    assert (result.name, result.api_port, result.bus_port, result.memory) == ("one", 0, 7, 2 * 10**9)
    assert (result.engine, result.peers, result.threads) == ("numpy", ("mini:1",), 3)
    assert result.node_id == folder.node_id
    assert (result.kv_memory, result.precision) == (0, "fast")


@pytest.mark.parametrize(("text", "count"), [("3GB", 3 * 10**9), ("0", 0)])
def test_keys_and_values_get_at_most_what_was_asked_for_and_zero_leaves_it_to_the_node(
    tmp_path: Path, text: str, count: int
) -> None:
    asked = Asked(kv_memory=text, precision="exact")
    check(asked)
    folder = open_folder(tmp_path)
    result = settings(asked, folder)
    folder.close()
    assert (result.kv_memory, result.precision) == (count, "exact")


def test_peers_come_from_the_environment_where_the_command_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXOBUS_PEER", "a:1, b:2")
    folder = open_folder(tmp_path)
    assert settings(Asked(), folder).peers == ("a:1", "b:2")
    assert settings(Asked(peers=("c:3",)), folder).peers == ("c:3",)
    folder.close()


def test_a_port_that_nobody_asked_for_is_left_to_who_binds_it(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    assert settings(Asked(), folder).api_port is None
    assert settings(Asked(api_port=0, bus_port=7000), folder).bus_port == 7000
    assert (ports_to_try(None, 52415), ports_to_try(0, 52415), ports_to_try(7000, 52415)) == ((52415, 0), (0,), (7000,))
    folder.close()


@pytest.mark.parametrize(
    "arguments", [["--host", "0.0.0.0"], ["--peer", "x y"], ["--memory", "much"], ["--api-port", "70000"]]
)
def test_a_wrong_option_ends_the_command_with_status_2(tmp_path: Path, arguments: list[str]) -> None:
    result = exobus_node("--data-dir", str(tmp_path / "node"), *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert not (tmp_path / "node").exists()


def test_a_second_node_in_one_data_folder_is_refused_with_the_next_step(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    result = exobus_node("--data-dir", str(tmp_path))
    folder.close()
    assert result.returncode == 1
    assert "is in use" in result.stderr
    assert "--data-dir" in result.stderr


def test_a_data_folder_that_cannot_be_made_is_refused_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = exobus_node(EXOBUS_DATA_DIR=str(tmp_path / "file" / "node"))
    assert result.returncode == 1
    assert "--data-dir" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_screen_tells_who_the_node_is_and_what_to_do_next() -> None:
    text = "\n".join(ready_lines(config(), hub("tcp://127.0.0.1:52414"), CAPABILITIES))
    for part in (
        "node one is ready",
        "00112233445566aa",
        "numpy: the fastest here",
        "8.0 GB",
        "curl -N",
        "exobus bus sub",
    ):
        assert part in text
    assert "--peer 127.0.0.1:52414" in text


def test_the_command_for_a_second_machine_says_what_it_needs() -> None:
    open_config = config(host="10.0.0.5")
    assert "--insecure --peer 10.0.0.5:52414" in add_node_command(open_config, hub("tcp://10.0.0.5:52414"))


def test_a_screen_that_is_no_terminal_gets_plain_lines_and_not_all_the_progress() -> None:
    out = io.StringIO()
    screen = NodeScreen(out, colour=True)
    screen.starting("starting")
    for done in range(100):
        screen.progress(f"fetching: {done} of 100 MB")
    screen.ready(config(), hub("tcp://127.0.0.1:1"), CAPABILITIES)
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


@pytest.mark.parametrize("colour", [False, True])
def test_a_terminal_gets_one_line_of_progress_that_is_replaced(colour: bool) -> None:
    out = Terminal()
    screen = NodeScreen(out, colour=colour)
    screen.progress("10 %")
    screen.progress("20 %")
    assert out.getvalue() == "10 %\r\x1b[2K20 %"
    screen.ready(config(), hub("tcp://127.0.0.1:1"), CAPABILITIES)
    assert ("\x1b[2mengine" in out.getvalue()) == colour
