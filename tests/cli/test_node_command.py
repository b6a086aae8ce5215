"""`exobus node`: options become settings, or one sentence and an exit status; its screen."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.data_dir import open_folder
from bus.messages import HubState
from cli.join_option import given_code, keep_code, kept_code
from cli.local_nodes import default_parent
from cli.node_process import Asked, check, resolved, settings, warnings
from cli.screen import NodeScreen, ready_lines
from cli.sizes import parse_bytes
from cluster.capabilities import DeviceCapabilities
from cluster.join_code import JoinCode, new_join_code
from cluster.roles import Role
from common.config import NodeConfig, ports_to_try
from common.private_files import read_private, write_private
from tests.support.nodes import clean_environment
from tests.support.ring import ROOT

HOME = new_join_code("home")
OTHER = new_join_code("office")

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
        env={**clean_environment(), **environment},
    )


def config(**fields: object) -> NodeConfig:
    """A node's settings with these fields."""
    fixed: dict[str, object] = {"node_id": "00112233445566aa", "name": "one", "incarnation": 1}
    folders: dict[str, object] = {"run_dir": "/nowhere", "data_dir": str(default_parent() / "one"), "cache_dir": ""}
    return NodeConfig(**{**fixed, **folders, **fields})  # type: ignore[arg-type]  # the fields of NodeConfig


def hub(join_endpoint: str = "") -> HubState:
    """A hub with a join port there."""
    return HubState("00112233445566aa", "one", "", join_endpoint=join_endpoint)


def meant(asked: Asked, code: JoinCode | None = None) -> Asked:
    """What was asked for, found to be possible."""
    asked = resolved(asked)
    check(asked, code)
    return asked


def settings_of(folder_path: Path, asked: Asked, code: JoinCode | None = None) -> NodeConfig:
    """The settings of a node that asked for this."""
    folder = open_folder(folder_path)
    try:
        return settings(meant(asked, code), folder, code)
    finally:
        folder.close()


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
        (Asked(host="0.0.0.0"), "127.0.0.1"),
        (Asked(host="studio.local"), "no address"),
        (Asked(host="192.168.1.5"), "exobus cluster init"),
        (Asked(api_host="192.168.1.5"), "--api-keys"),
        (Asked(api_host="0.0.0.0"), "--api-keys"),
        (Asked(api_host="studio.local"), "--api-host"),
        (Asked(peers=("127.0.0.1:1",)), "join code"),
        (Asked(strict=True), "exobus cluster init"),
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
        meant(asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("peer", ["127.0.0.1:52414", "studio.local:1", "[fe80::1]:52414", "tcp://mini:52414"])
def test_a_peer_is_named_as_host_and_port(peer: str) -> None:
    meant(Asked(peers=(peer,)), HOME)


def test_a_node_of_a_cluster_may_be_reached_by_others_and_its_api_only_with_keys() -> None:
    assert meant(Asked(host="192.168.1.5"), HOME).api_host == "127.0.0.1"
    assert meant(Asked(api_host="192.168.1.5", api_keys=Path("keys"))).host == "127.0.0.1"


def test_options_become_the_nodes_settings(tmp_path: Path) -> None:
    asked = Asked(name="one", api_port=0, bus_port=7, join_port=8, memory="2GB", engine="numpy", threads=3)
    result = settings_of(tmp_path, asked)
    assert (result.name, result.api_port, result.bus_port, result.memory) == ("one", 0, 7, 2 * 10**9)
    assert (result.engine, result.threads, result.join_port) == ("numpy", 3, 8)
    assert (result.kv_memory, result.precision) == (0, "fast")
    assert (result.cluster, result.code_file) == ("", "")


def test_options_of_a_cluster_and_of_the_api_become_settings(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    api = Asked(api_host="10.0.0.5", api_keys=keys, api_names=("studio",), cors=("https://a",), peers=("tcp://mini:1",))
    result = settings_of(tmp_path, replace(api, strict=True, host="10.0.0.5", data_dir=tmp_path), HOME)
    assert (result.api_host, result.api_keys, result.api_names, result.cors) == (
        "10.0.0.5",
        str(keys),
        ("studio",),
        ("https://a",),
    )
    assert (result.cluster, result.code_file) == ("home", str(tmp_path / "join-code"))
    assert (result.strict, result.host, result.peers) == (True, "10.0.0.5", ("mini:1",))
    assert secret_of(HOME) not in repr(result)


def secret_of(code: JoinCode) -> str:
    """The letters of a code that nobody should see."""
    return code.text().partition("-")[2]


def test_a_code_is_given_as_it_is_or_as_a_file_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "code"
    write_private(file, HOME.text())
    assert given_code(HOME.text()) == given_code(str(file)) == HOME
    file.chmod(0o644)
    with pytest.raises(OSError, match="can be read by others"):
        given_code(str(file))
    with pytest.raises(ValueError, match="typing mistake"):
        given_code("home-" + "A" * 56)


def test_a_code_that_was_given_is_kept_for_the_next_start_and_a_new_one_takes_its_place(tmp_path: Path) -> None:
    rotated = new_join_code("home")
    assert kept_code(tmp_path) is None
    for code in (HOME, rotated):
        keep_code(tmp_path, code)
        assert kept_code(tmp_path) == code
    assert (tmp_path / "join-code").stat().st_mode & 0o777 == 0o600


def test_a_start_script_does_not_bring_back_the_code_of_before_a_rotation(tmp_path: Path) -> None:
    rotated, newer = new_join_code("home"), new_join_code("home")
    assert keep_code(tmp_path, HOME) == HOME
    write_private(tmp_path / "join-code", rotated.text())
    assert keep_code(tmp_path, HOME) == rotated == kept_code(tmp_path)
    assert keep_code(tmp_path, newer) == newer == kept_code(tmp_path)


def test_the_code_of_another_cluster_is_not_overwritten(tmp_path: Path) -> None:
    keep_code(tmp_path, HOME)
    with pytest.raises(ValueError, match=f"{tmp_path / 'join-code'} holds the join code of cluster home"):
        keep_code(tmp_path, OTHER)
    assert kept_code(tmp_path) == HOME


def test_a_kept_code_that_was_damaged_is_named_with_its_file(tmp_path: Path) -> None:
    write_private(tmp_path / "join-code", "not a code")
    with pytest.raises(ValueError, match=f"the join code in {tmp_path / 'join-code'} cannot be used"):
        kept_code(tmp_path)


def test_a_code_on_the_command_line_and_an_api_in_plain_http_are_warned_of(tmp_path: Path) -> None:
    assert warnings(Asked(join=str(tmp_path))) == warnings(Asked()) == []
    (seen,) = warnings(Asked(join=HOME.text()))
    assert "can see a join code on the command line" in seen
    (plain,) = warnings(Asked(api_host="10.0.0.5"))
    assert "plain HTTP" in plain


@pytest.mark.parametrize(("text", "count"), [("3GB", 3 * 10**9), ("0", 0)])
def test_keys_and_values_get_at_most_what_was_asked_for_and_zero_leaves_it_to_the_node(
    tmp_path: Path, text: str, count: int
) -> None:
    result = settings_of(tmp_path, Asked(kv_memory=text, precision="exact"))
    assert (result.kv_memory, result.precision) == (count, "exact")


def test_peers_come_from_the_environment_where_the_command_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXOBUS_PEER", "a:1, b:2")
    assert settings_of(tmp_path, Asked(), HOME).peers == ("a:1", "b:2")
    assert settings_of(tmp_path, Asked(peers=("c:3",)), HOME).peers == ("c:3",)


def test_a_port_that_nobody_asked_for_is_left_to_who_binds_it(tmp_path: Path) -> None:
    assert settings_of(tmp_path, Asked()).api_port is None
    assert settings_of(tmp_path, Asked(api_port=0, bus_port=7000)).bus_port == 7000
    assert (ports_to_try(None, 52415), ports_to_try(0, 52415), ports_to_try(7000, 52415)) == ((52415, 0), (0,), (7000,))


@pytest.mark.parametrize(
    "arguments",
    [["--host", "0.0.0.0"], ["--peer", "a:1"], ["--join", "x"], ["--memory", "much"], ["--api-port", "70000"]],
)
def test_a_wrong_option_ends_the_command_with_status_2(tmp_path: Path, arguments: list[str]) -> None:
    result = exobus_node("--data-dir", str(tmp_path / "node"), *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert not (tmp_path / "node").exists()


def test_a_node_is_not_moved_to_another_cluster_by_mistake(tmp_path: Path) -> None:
    keep_code(tmp_path, HOME)
    result = exobus_node("--data-dir", str(tmp_path), EXOBUS_JOIN=OTHER.text())
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{tmp_path / 'join-code'} holds the join code of cluster home" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert read_private(tmp_path / "join-code") == HOME.text()


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


def screen(settings: NodeConfig, state: HubState, role: Role = Role.MEMBER) -> str:
    return "\n".join(ready_lines(settings, state, CAPABILITIES, role))


def test_the_screen_tells_who_the_node_is_and_what_to_do_next() -> None:
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


def test_the_screen_of_a_node_that_stands_alone_says_how_to_open_up() -> None:
    text = screen(config(), hub())
    assert "this node stands alone" in text
    assert "exobus cluster init" in text
    assert "exobus node --host auto --join CODE" in text


def test_the_screen_of_a_member_names_its_cluster_and_how_to_invite() -> None:
    join_endpoint = hub("tcp://10.0.0.5:52414")
    text = screen(config(cluster="home", host="10.0.0.5"), join_endpoint)
    assert "home, as a member, others knock at 10.0.0.5:52414" in text
    assert "exobus cluster invite" in text
    assert "--join CODE --peer 10.0.0.5:52414" in text
    assert "exobus node --name second" in screen(config(cluster="home"), hub("tcp://127.0.0.1:52414"))
    assert "member, strict, others" in screen(config(cluster="home", strict=True), join_endpoint)


def test_the_commands_on_the_screen_are_for_the_folder_in_which_the_node_runs() -> None:
    for cluster, command in (("", "init"), ("home", "invite")):
        settings = config(cluster=cluster, data_dir="/srv/node")
        assert f"exobus cluster {command} --data-dir /srv/node " in screen(settings, hub())
        assert "--name second" not in screen(settings, hub())


def test_the_screen_of_a_gateway_offers_chats_and_that_of_an_observer_none() -> None:
    gateway, observer = (screen(config(cluster="home"), hub(), role) for role in (Role.GATEWAY, Role.OBSERVER))
    assert "home, as a gateway" in gateway
    assert "home, as an observer" in observer
    assert ("exobus run" in gateway, "exobus run" in observer) == (True, False)
    for text in (gateway, observer):
        assert "cluster invite" not in text
        assert "exobus bus sub" in text


def test_a_screen_that_is_no_terminal_gets_plain_lines_and_not_all_the_progress() -> None:
    out = io.StringIO()
    screen = NodeScreen(Role.MEMBER, out, colour=True)
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


@pytest.mark.parametrize("colour", [False, True])
def test_a_terminal_gets_one_line_of_progress_that_is_replaced(colour: bool) -> None:
    out = Terminal()
    screen = NodeScreen(Role.MEMBER, out, colour=colour)
    screen.progress("10 %")
    screen.progress("20 %")
    assert out.getvalue() == "10 %\r\x1b[2K20 %"
    screen.ready(config(), hub(), CAPABILITIES)
    assert ("\x1b[2mengine" in out.getvalue()) == colour
