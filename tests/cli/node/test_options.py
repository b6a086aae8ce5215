"""The table of the options of `exobus node`: what is derived from it agrees with the rest of the program."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import msgspec
import pytest

from cli.node.options import NodeOptions, flags
from common.config import DEFAULT_API_PORT, DEFAULT_BUS_PORT, DEFAULT_DISCOVERY_PORT, DEFAULT_JOIN_PORT, NodeConfig
from engines.settings import ENGINES
from tests.support.commands import exobus
from tests.support.gateway.gateway_rig import ROOT

DECIDED_LATER = {
    "node_id",
    "name",
    "incarnation",
    "run_dir",
    "data_dir",
    "cache_dir",
    "cluster",
    "code_file",
    "machine",
}


def test_every_setting_has_an_option_or_the_folder() -> None:
    assert set(NodeOptions().settings()) == {f.name for f in msgspec.structs.fields(NodeConfig)} - DECIDED_LATER


def test_defaults_are_those_of_the_program() -> None:
    help_text = exobus("node", "--help").stdout
    assert NodeOptions().discovery_port == DEFAULT_DISCOVERY_PORT
    for option, port in (("bus", DEFAULT_BUS_PORT), ("join", DEFAULT_JOIN_PORT), ("api", DEFAULT_API_PORT)):
        assert re.search(rf"--{option}-port .*default: \({port} or a free one\)", help_text)
    assert all(engine in help_text for engine in ENGINES)


def test_help_and_readme_name_every_option() -> None:
    help_text, readme = exobus("node", "--help").stdout, (ROOT / "README.md").read_text()
    for flag in flags():
        variable = "EXOBUS_" + flag[2:].replace("models-dir", "models").replace("-", "_").upper()
        assert variable in help_text.partition(f"\n  {flag} ")[2].partition("\n  -")[0]
        assert flag in readme, flag
    assert len(flags()) == len(fields(NodeOptions))


@pytest.mark.parametrize(
    ("options", "setting", "value"),
    [
        (NodeOptions(memory="2GB"), "memory", 2 * 10**9),
        (NodeOptions(memory=None), "memory", 0),
        (NodeOptions(kv_memory="0"), "kv_memory", 0),
        (NodeOptions(keep_loaded=None), "keep_loaded_s", -1),
        (NodeOptions(keep_loaded="0"), "keep_loaded_s", 0),
        (NodeOptions(keep_loaded="10m"), "keep_loaded_s", 600),
        (NodeOptions(threads=3), "threads", 3),
        (NodeOptions(threads=None), "threads", 0),
        (NodeOptions(cards=Path("/cards")), "cards_dir", "/cards"),
        (NodeOptions(cards=None), "cards_dir", ""),
        (NodeOptions(api_keys=Path("~/keys")), "api_keys", str(Path.home() / "keys")),
        (NodeOptions(api_port=None), "api_port", None),
    ],
)
def test_option_becomes_a_setting(options: NodeOptions, setting: str, value: object) -> None:
    assert options.settings()[setting] == value


def test_repeated_options_and_variables_reach_the_node(tmp_path: Path) -> None:
    result = exobus("node", "--peer", "a:1", "--peer", "b:99999", EXOBUS_DATA_DIR=str(tmp_path))
    assert "b:99999" in result.stderr
    assert "'sloppy'" in exobus("node", EXOBUS_PRECISION="sloppy", EXOBUS_DATA_DIR=str(tmp_path)).stderr
