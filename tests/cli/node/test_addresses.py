"""Addresses for `--host` and `--api-host`: what `auto` picks among a machine's interfaces, and what is refused."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.node.addresses import BadAddress, checked_api_host, checked_host, picked, private_addresses


class Own(NamedTuple):
    """An address of an interface."""

    family: int
    address: str


V4 = socket.AF_INET
HOME = {
    "lo": [Own(V4, "127.0.0.1"), Own(socket.AF_INET6, "::1")],
    "eth0": [Own(V4, "192.168.1.10"), Own(socket.AF_INET6, "fe80::1%eth0"), Own(socket.AF_PACKET, "00:11:22:33:44:55")],
    "wlan0": [Own(V4, "192.168.1.11")],
    "docker0": [Own(V4, "172.17.0.1")],
    "br-0123456789ab": [Own(V4, "172.18.0.1")],
    "veth12": [Own(V4, "10.1.1.1")],
    "tailscale0": [Own(V4, "100.64.0.7")],
    "utun3": [Own(V4, "10.8.0.2")],
    "virbr0": [Own(V4, "192.168.122.1")],
    "en5": [Own(V4, "169.254.9.9")],
    "ppp-wan": [Own(V4, "203.0.113.9")],
    "eth1": [Own(V4, "8.8.8.8")],
}


def test_auto_picks_a_private_address_that_is_up() -> None:
    up = dict.fromkeys(HOME, True) | {"wlan0": False}
    assert private_addresses(HOME, up) == ("192.168.1.10",)
    assert picked(private_addresses(HOME, up)) == "192.168.1.10"


def test_several_addresses_are_listed() -> None:
    found = private_addresses(HOME, dict.fromkeys(HOME, True))
    assert found == ("192.168.1.10", "192.168.1.11")
    with pytest.raises(BadAddress, match=r"name one of 192\.168\.1\.10, 192\.168\.1\.11"):
        picked(found)


def test_missing_address_is_reported() -> None:
    assert private_addresses(HOME, {}) == ()
    with pytest.raises(BadAddress, match="finds no private address"):
        picked(())


@given(st.ip_addresses(v=4))
def test_public_address_is_never_picked(address: object) -> None:
    text = str(address)
    found = private_addresses({"eth0": [Own(V4, text)]}, {"eth0": True})
    assert not found or not ip_address(text).is_global


@pytest.mark.parametrize(("host", "checked"), [("localhost", "127.0.0.1"), ("10.0.0.5", "10.0.0.5"), ("::1", "::1")])
def test_address_is_used_as_given(host: str, checked: str) -> None:
    assert checked_host(host) == checked
    assert checked_api_host(host, keys=True) == checked


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_wildcard_is_for_an_api_with_keys_only(host: str) -> None:
    assert checked_api_host(host, keys=True) == host
    with pytest.raises(BadAddress, match="--api-keys"):
        checked_api_host(host, keys=False)
    with pytest.raises(BadAddress, match="not an address that other machines can connect to"):
        checked_host(host)
