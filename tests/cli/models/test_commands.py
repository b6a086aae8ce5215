"""`exobus models` as a process that talks to a real gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.commands import exobus
from tests.support.gateway.gateway_rig import MODEL, Rig, running_rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("models")) as rig:
        yield rig


def test_models_are_printed_as_a_table(rig: Rig) -> None:
    lines = exobus("models", "ls", "--api", rig.url).stdout.splitlines()
    assert lines[0].split() == ["MODEL", "PARAMS", "SIZE", "CONTEXT", "FITS", "HERE"]
    assert any(line.split()[0] == MODEL for line in lines)


def test_models_are_printed_as_json(rig: Rig) -> None:
    assert MODEL in {model["id"] for model in json.loads(exobus("models", "ls", "--json", "--api", rig.url).stdout)}


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "http://127.0.0.1:{port}/", "http://127.0.0.1:{port}/v1"])
def test_address_needs_no_scheme(rig: Rig, address: str) -> None:
    port = rig.url.rpartition(":")[2]
    assert exobus("models", "ls", "--api", address.format(port=port)).returncode == 0
