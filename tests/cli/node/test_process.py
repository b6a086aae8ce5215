"""`exobus node`: options become settings, or one sentence and an exit status."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.data_dir import open_folder
from cli.join_codes import keep_code
from cli.node.options import NodeOptions
from cli.node.process import BadOption, check_options, resolved, settings, warnings
from cluster.join_code import JoinCode, new_join_code
from common.config import NodeConfig, ports_to_try
from common.private_files import read_private
from tests.support.bus import ROOT
from tests.support.commands import exobus
from tests.support.mounts import needs_mounts, read_only

HOME = new_join_code("home")
OTHER = new_join_code("office")


def checked(options: NodeOptions, code: JoinCode | None = None) -> NodeOptions:
    """Return the options as the node would use them."""
    options = resolved(options)
    check_options(options, code)
    return options


def settings_of(path: Path, options: NodeOptions, code: JoinCode | None = None) -> NodeConfig:
    """Return the settings of a node with these options."""
    folder = open_folder(path)
    try:
        return settings(checked(options, code), folder, code)
    finally:
        folder.close()


def secret_of(code: JoinCode) -> str:
    """Return the letters of a code that must not be shown."""
    return code.text().partition("-")[2]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (NodeOptions(host="0.0.0.0"), "127.0.0.1"),
        (NodeOptions(host="studio.local"), "not an address"),
        (NodeOptions(host="192.168.1.5"), "exobus cluster init"),
        (NodeOptions(api_host="192.168.1.5"), "--api-keys"),
        (NodeOptions(api_host="0.0.0.0"), "--api-keys"),
        (NodeOptions(api_host="studio.local"), "--api-host"),
        (NodeOptions(peers=("127.0.0.1:1",)), "join code"),
        (NodeOptions(strict=True), "exobus cluster init"),
        (NodeOptions(engine="abacus"), "numpy"),
        (NodeOptions(memory="lots"), "12GB"),
        (NodeOptions(memory="0"), "--memory"),
        (NodeOptions(kv_memory="some"), "12GB"),
        (NodeOptions(precision="sloppy"), "fast, exact"),
        (NodeOptions(quantize="6"), "--quantize '6' is not known; choose one of auto, none, 8, 4"),
        (NodeOptions(peers=("a:1", "b:99999")), "b:99999"),
        (NodeOptions(peers=("a b:1",)), "host:port"),
        (NodeOptions(cards=Path("/nowhere/at/all")), "--cards"),
        (NodeOptions(name="../up"), "node name"),
    ],
)
def test_unusable_option_is_refused_with_a_sentence(options: NodeOptions, word: str) -> None:
    with pytest.raises(Exception, match=word) as caught:
        checked(options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [lambda p: {"data_dir": p}, lambda p: {"cards": p}, lambda p: {"api_keys": p}],
    ids=("data", "cards", "keys"),
)
def test_path_that_is_not_utf8_is_refused(tmp_path: Path, option: Callable[[Path], dict[str, Any]]) -> None:
    (tmp_path / "\udcff").mkdir()
    with pytest.raises(BadOption, match=r"^--[a-z-]+ .*udcff' is not UTF-8; give a path"):
        checked(NodeOptions(**option(tmp_path / "\udcff")))


def test_data_folder_that_is_not_utf8_ends_the_command(tmp_path: Path) -> None:
    result = exobus("node", "--data-dir", str(tmp_path / "\udcff"))
    assert (result.returncode, result.stdout) == (2, "")
    assert "is not UTF-8" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("cache", ["file", "file/models", "dangling", "dangling/models"])
def test_cache_that_is_no_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "dangling").symlink_to("nowhere/at/all")
    monkeypatch.setenv("EXOBUS_CACHE", str(tmp_path / cache))
    with pytest.raises(BadOption, match="is not a folder; set EXOBUS_CACHE to one"):
        checked(NodeOptions())


@needs_mounts
def test_read_only_cache_is_warned_of(tmp_path: Path) -> None:
    code = "from cli.node.process import NodeOptions, warnings; print(*warnings(NodeOptions()), sep='\\n')"
    for cache in (tmp_path, tmp_path / "not" / "there"):
        command = read_only(tmp_path, "env", f"EXOBUS_CACHE={cache}", sys.executable, "-c", code)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.stdout.startswith(f"warning: the model cache {cache} cannot be written, so only models"), done


@pytest.mark.parametrize("peer", ["127.0.0.1:52414", "studio.local:1", "[fe80::1]:52414", "tcp://mini:52414"])
def test_peer_is_host_and_port(peer: str) -> None:
    checked(NodeOptions(peers=(peer,)), HOME)


def test_one_given_host_leaves_the_other_on_loopback() -> None:
    assert checked(NodeOptions(host="192.168.1.5"), HOME).api_host == "127.0.0.1"
    assert checked(NodeOptions(api_host="192.168.1.5", api_keys=Path("keys"))).host == "127.0.0.1"


def test_options_become_settings(tmp_path: Path) -> None:
    options = NodeOptions(name="one", api_port=0, bus_port=7, join_port=8, memory="2GB", engine="numpy", threads=3)
    result = settings_of(tmp_path, options)
    assert (result.name, result.api_port, result.bus_port, result.memory) == ("one", 0, 7, 2 * 10**9)
    assert (result.engine, result.threads, result.join_port) == ("numpy", 3, 8)
    assert (result.kv_memory, result.precision) == (0, "fast")
    assert (result.cluster, result.code_file) == ("", "")


def test_nodes_of_a_machine_know_that_they_share_it(tmp_path: Path) -> None:
    first, second = (settings_of(tmp_path / name, NodeOptions(name=name)) for name in ("one", "two"))
    assert first.machine == second.machine != ""
    assert first.node_id != second.node_id


def test_cluster_and_api_options_become_settings(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    api = NodeOptions(
        api_host="10.0.0.5", api_keys=keys, api_names=("studio",), cors=("https://a",), peers=("tcp://mini:1",)
    )
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


def test_visible_code_and_plain_http_are_warned_of(tmp_path: Path) -> None:
    assert warnings(NodeOptions(join=str(tmp_path))) == warnings(NodeOptions()) == []
    (visible,) = warnings(NodeOptions(join=HOME.text()))
    assert "can see a join code on the command line" in visible
    (plain,) = warnings(NodeOptions(api_host="10.0.0.5"))
    assert "plain HTTP" in plain


@pytest.mark.parametrize(("text", "count"), [("3GB", 3 * 10**9), ("0", 0)])
def test_kv_memory_is_optional(tmp_path: Path, text: str, count: int) -> None:
    result = settings_of(tmp_path, NodeOptions(kv_memory=text, precision="exact", quantize="4"))
    assert (result.kv_memory, result.precision, result.quantize) == (count, "exact", "4")


def test_peers_default_to_those_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXOBUS_PEER", "a:1, b:2")
    assert settings_of(tmp_path, NodeOptions(), HOME).peers == ("a:1", "b:2")
    assert settings_of(tmp_path, NodeOptions(peers=("c:3",)), HOME).peers == ("c:3",)


def test_unspecified_port_is_chosen_at_binding(tmp_path: Path) -> None:
    assert settings_of(tmp_path, NodeOptions()).api_port is None
    assert settings_of(tmp_path, NodeOptions(api_port=0, bus_port=7000)).bus_port == 7000
    assert (ports_to_try(None, 52415), ports_to_try(0, 52415), ports_to_try(7000, 52415)) == ((52415, 0), (0,), (7000,))


@pytest.mark.parametrize(
    "arguments",
    [["--host", "0.0.0.0"], ["--peer", "a:1"], ["--join", "x"], ["--memory", "much"], ["--api-port", "70000"]],
)
def test_wrong_option_ends_the_command_with_status_2(tmp_path: Path, arguments: list[str]) -> None:
    result = exobus("node", "--data-dir", str(tmp_path / "node"), *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert not (tmp_path / "node").exists()


def test_node_never_changes_its_cluster_by_mistake(tmp_path: Path) -> None:
    keep_code(tmp_path, HOME)
    result = exobus("node", "--data-dir", str(tmp_path), EXOBUS_JOIN=OTHER.text())
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{tmp_path / 'join-code'} holds the join code of cluster home" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert read_private(tmp_path / "join-code") == HOME.text()


def test_second_node_in_a_data_folder_is_refused(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    result = exobus("node", "--data-dir", str(tmp_path))
    folder.close()
    assert result.returncode == 1
    assert "is in use" in result.stderr
    assert "--data-dir" in result.stderr


def test_data_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = exobus("node", EXOBUS_DATA_DIR=str(tmp_path / "file" / "node"))
    assert result.returncode == 1
    assert "--data-dir" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
