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


def test_search_finds_in_the_catalogue_without_the_hub(rig: Rig) -> None:
    done = exobus("models", "search", "GEMMA", "--api", rig.url, HF_ENDPOINT="http://127.0.0.1:9")
    assert {line.split()[0] for line in done.stdout.splitlines()[1:]} >= {"gemma-3-1b", "gemma-3-27b"}
    assert "only the catalogue was searched: the hub could not be reached" in done.stderr


def test_model_is_shown_and_planned(rig: Rig) -> None:
    shown = exobus("models", "show", "tiny-chat", "--api", rig.url).stdout
    assert "4 layers of 64" in shown
    assert "this machine" in shown, "the path of an own model is not told"
    planned = exobus("models", "plan", MODEL, "--api", rig.url, "--json")
    assert json.loads(planned.stdout)[0]["start_layer"] == 0


def test_own_model_needs_no_pull(rig: Rig) -> None:
    done = exobus("models", "pull", "tiny-chat", EXOBUS_DATA_DIR=rig.config.data_dir)
    assert done.stdout == "tiny is a folder or file of this machine; try: exobus run tiny\n", done.stderr


@pytest.mark.parametrize("arguments", [("models", "show"), ("models", "plan"), ("run",)])
def test_path_is_not_sent_to_a_gateway(rig: Rig, arguments: tuple[str, ...]) -> None:
    done = exobus(*arguments, "./folder", "--api", rig.url, data="hello")
    assert done.returncode == 2
    assert "./folder is a path" in done.stderr
    assert "exobus models add" in done.stderr


def test_removing_what_was_never_fetched_says_so(rig: Rig) -> None:
    done = exobus("models", "rm", "gemma3:1b", EXOBUS_DATA_DIR=rig.config.data_dir)
    assert done.stdout == "nothing of gemma-3-1b is on this machine\n", done.stderr


def test_address_of_the_hub_is_searched_as_a_name(rig: Rig) -> None:
    address = "https://huggingface.co/unsloth/gemma-3-1b-it"
    done = exobus("models", "search", address, "--api", rig.url, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.stdout.splitlines()[1].split()[0] == "gemma-3-1b"
