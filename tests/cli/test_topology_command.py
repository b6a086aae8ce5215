"""`exobus topology` as a process that talks to a real gateway."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.support.commands import exobus
from tests.support.gateway.gateway_rig import NODE_ID, POSITIONS, Rig, running_rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("topology")) as rig:
        yield rig


def test_nodes_and_layers_are_printed_as_tables(rig: Rig) -> None:
    text = exobus("topology", "--api", rig.url).stdout
    assert text.splitlines()[0].split() == ["NODE", "ID", "ENGINE", "FREE", "API"]
    assert f"rig *  {NODE_ID}" in text
    assert re.search(r"rig +layers +0-3 +numpy +████  4,096 positions\n +it was asked for", text)


def test_topology_is_printed_as_json(rig: Rig) -> None:
    body = json.loads(exobus("topology", "--json", "--api", rig.url).stdout)
    assert body["instances"][0]["stages"][0]["end_layer"] == 4
    assert body["instances"][0]["stages"][0]["positions"] == POSITIONS


def test_local_node_is_found(rig: Rig) -> None:
    found = exobus("topology", "--json", EXOBUS_DATA_DIR=rig.config.data_dir)
    assert json.loads(found.stdout)["node_id"] == NODE_ID
