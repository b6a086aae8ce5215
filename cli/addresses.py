"""What `--host` and `--api-host` may name: an address of this machine. Reads the interfaces, opens no socket."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Protocol

import psutil

AUTO = "auto"
# of containers, virtual machines and tunnels: no other machine of the house is reached there
_VIRTUAL = re.compile(
    r"(docker|br-|bridge|veth|vir|vmnet|vboxnet|vnic|cni|flannel|cali|kube|podman|lxc|lxd|tun|tap|utun|ppp|ipsec|wg"
    r"|tailscale|ts|zt|nebula|awdl|llw|anpi|gif|stf|ham|dummy|ifb)[-a-z0-9_.]*",
    re.IGNORECASE,
)


class BadAddress(ValueError):
    """An address that cannot be meant; the message is one sentence."""


class Address(Protocol):
    """An address of an interface, as psutil gives it."""

    @property
    def family(self) -> int:
        """One of `socket.AF_*`."""

    @property
    def address(self) -> str:
        """In text."""


def checked_host(host: str) -> str:
    """The address of `--host`, where `auto` picks one. Raises BadAddress for none, and for the wildcard."""
    host = _picked() if host == AUTO else host
    address = _parsed(host, "--host")
    if address.is_unspecified:
        raise BadAddress(f"--host {host} is no address that other machines can dial; {_addresses_here()}")
    return str(address)


def checked_api_host(host: str, *, keys: bool) -> str:
    """The address of `--api-host`. Raises BadAddress for none, and where others could use the API without a key."""
    address = _parsed(host, "--api-host")
    if not address.is_loopback and not keys:
        raise BadAddress(
            f"--api-host {host} would let everybody on that network use the API; "
            "name a file of API keys with --api-keys"
        )
    return str(address)


def private_addresses(addresses: Mapping[str, Sequence[Address]], up: Mapping[str, bool]) -> tuple[str, ...]:
    """The private IPv4 addresses of interfaces that are up and no tunnel, bridge or virtual machine's. Pure."""
    return tuple(
        own.address
        for name, held in sorted(addresses.items())
        for own in held
        if own.family == socket.AF_INET and up.get(name) and not _VIRTUAL.fullmatch(name) and _is_private(own.address)
    )


def picked(found: Sequence[str]) -> str:
    """The one address. Raises BadAddress where there is none, or where the owner has to choose. Pure."""
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
        raise BadAddress(f"{option} {host!r} is no address; {_addresses_here()}") from None


def _addresses_here() -> str:
    families = (socket.AF_INET, socket.AF_INET6)
    found = {a.address for addresses in psutil.net_if_addrs().values() for a in addresses if a.family in families}
    return f"name one of this machine's: {', '.join(sorted(found))}"
