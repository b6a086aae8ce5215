"""The addresses that `--host` and `--api-host` may name. Reads the interfaces of this machine, opens no socket."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Protocol

import psutil

AUTO = "auto"
# interfaces of containers, virtual machines and tunnels: no other machine of the local network is reached there
_VIRTUAL = re.compile(
    r"(docker|br-|bridge|veth|vir|vmnet|vboxnet|vnic|cni|flannel|cali|kube|podman|lxc|lxd|tun|tap|utun|ppp|ipsec|wg"
    r"|tailscale|ts|zt|nebula|awdl|llw|anpi|gif|stf|ham|dummy|ifb)[-a-z0-9_.]*",
    re.IGNORECASE,
)


class BadAddress(ValueError):
    """An address that cannot be used; the message is one sentence."""


class InterfaceAddress(Protocol):
    """An address of an interface, as psutil returns it."""

    @property
    def family(self) -> int:
        """One of `socket.AF_*`."""

    @property
    def address(self) -> str:
        """The address as text."""


def checked_host(host: str) -> str:
    """Return the address of `--host`; `auto` picks one. Raises BadAddress for any other text, and for a wildcard."""
    address = _parsed(_picked() if host == AUTO else host, "--host")
    if address.is_unspecified:
        raise BadAddress(f"--host {host} is not an address that other machines can connect to; {_addresses_here()}")
    return str(address)


def checked_api_host(host: str, *, keys: bool) -> str:
    """Return the address of `--api-host`. Raises BadAddress if it is none, or if others could use it without a key."""
    address = _parsed(host, "--api-host")
    if not address.is_loopback and not keys:
        raise BadAddress(
            f"--api-host {host} would let anyone on that network use the API; name a file of API keys with --api-keys"
        )
    return str(address)


def private_addresses(addresses: Mapping[str, Sequence[InterfaceAddress]], up: Mapping[str, bool]) -> tuple[str, ...]:
    """Return the private IPv4 addresses of interfaces that are up, without tunnels, bridges and virtual machines."""
    return tuple(
        own.address
        for name, held in sorted(addresses.items())
        for own in held
        if own.family == socket.AF_INET and up.get(name) and not _VIRTUAL.fullmatch(name) and _is_private(own.address)
    )


def picked(found: Sequence[str]) -> str:
    """Return the only address. Raises BadAddress if there is none, or if the owner has to choose."""
    if not found:
        raise BadAddress("--host auto finds no private address on this machine; connect it to a network, or name one")
    if len(found) > 1:
        raise BadAddress(f"--host auto finds several addresses; name one of {', '.join(found)}")
    return found[0]


def _picked() -> str:
    up = {name: state.isup for name, state in psutil.net_if_stats().items()}
    return picked(private_addresses(psutil.net_if_addrs(), up))


def _is_private(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return address.is_private and not address.is_loopback and not address.is_link_local


def _parsed(host: str, option: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise BadAddress(f"{option} {host!r} is not an address; {_addresses_here()}") from None


def _addresses_here() -> str:
    families = (socket.AF_INET, socket.AF_INET6)
    found = {a.address for addresses in psutil.net_if_addrs().values() for a in addresses if a.family in families}
    return f"name one of this machine's: {', '.join(sorted(found))}"
