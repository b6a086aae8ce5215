"""Which requests a browser may bring: the names we go by, the pages that may call, the kind of body. Pure.

A web page makes its reader's browser send requests to this machine. Such a request shows by its headers: an origin
that is not ours, a host name that only the page's DNS points here, a body of a kind that needs nobody's leave.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bus.process import CannotStart

MAX_HEADER_BYTES = 32 << 10
MAX_TARGET_BYTES = 8 << 10

Headers = Sequence[tuple[bytes, bytes]]  # names in lower case, as ASGI has them

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#*,@]+")
_JSON = re.compile(r'application/json\s*(;\s*charset\s*=\s*"?utf-8"?\s*)?', re.IGNORECASE)
_ANYWHERE = frozenset({"", "0.0.0.0", "::"})  # noqa: S104  # no client calls a gateway by these


class Refusal(NamedTuple):
    """The status and the sentence of a refusal."""

    status: int
    sentence: str


@dataclass(frozen=True)
class Site:
    """What a gateway goes by: host names with their brackets, its port, and the origins that may call it."""

    hosts: frozenset[str]
    port: int
    origins: frozenset[str]

    def knows_host(self, host: str) -> bool:
        """Whether a Host header names this gateway: one of its names, with its port or none."""
        match = _HOST.fullmatch(host)
        return bool(match and match["name"] in self.hosts and match["port"] in (None, str(self.port)))

    def knows_origin(self, origin: str) -> bool:
        """Whether pages of this origin may call: those on the list, and the gateway's own."""
        scheme, _, host = origin.partition("://")
        own = scheme == "http" and (host in self.hosts if self.port == 80 else self._own(host))
        return own or origin in self.origins

    def _own(self, host: str) -> bool:
        name, _, port = host.rpartition(":")
        return name in self.hosts and port == str(self.port)


def site(host: str, port: int, names: Iterable[str] = (), origins: Iterable[str] = ()) -> Site:
    """The site of a gateway that listens on `host`. Raises CannotStart for what is no name or no origin."""
    listed = frozenset(origin.lower().rstrip("/") for origin in origins)
    for origin in listed:
        if not _ORIGIN.fullmatch(origin):
            raise CannotStart(
                f"--cors {origin!r} is no origin; name each page's, such as https://chat.example or http://localhost:3000"
            )
    usual = ("127.0.0.1", "localhost", "::1", *(() if host in _ANYWHERE else (host,)))
    hosts = frozenset(_bracketed(name.lower()) for name in (*usual, *names))
    for name in hosts:
        match = _HOST.fullmatch(name)
        if not match or match["port"]:
            raise CannotStart(f"--api-name {name!r} is no host name; give it without scheme and port")
    return Site(hosts, port, listed)


def _bracketed(name: str) -> str:
    return f"[{name}]" if name.count(":") > 1 and not name.startswith("[") else name


def refusal(method: str, target: bytes, headers: Headers, site: Site) -> Refusal | None:
    """Why a request is not let in, before anybody looks at what it asks for; None where it is."""
    return (
        _too_long(target, headers)
        or _wrong_host(_values(headers, b"host"), site)
        or _wrong_origin(headers, site)
        or _wrong_kind(method, headers)
    )


def _too_long(target: bytes, headers: Headers) -> Refusal | None:
    if len(target) > MAX_TARGET_BYTES:
        return Refusal(414, f"the path and its query are longer than {MAX_TARGET_BYTES >> 10} KiB; send less")
    if sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEADER_BYTES:
        return Refusal(431, f"the headers are larger than {MAX_HEADER_BYTES >> 10} KiB; send less")
    return None


def _wrong_host(hosts: Sequence[str], site: Site) -> Refusal | None:
    if len(hosts) != 1:
        return Refusal(400, f"a request names one Host, this one names {len(hosts)}")
    if not site.knows_host(hosts[0].lower()):
        known = ", ".join(sorted(site.hosts))
        return Refusal(
            421, f"this gateway does not go by {hosts[0][:100]!r}, only by {known}; start it with --api-name to add one"
        )
    return None


def _wrong_origin(headers: Headers, site: Site) -> Refusal | None:
    origins = _values(headers, b"origin")
    for origin in origins:
        if not site.knows_origin(origin):
            return Refusal(
                403, f"pages of {origin[:100]!r} may not call this gateway; start it with --cors to let them"
            )
    if origins:
        return None
    if any(value not in ("none", "same-origin") for value in _values(headers, b"sec-fetch-site")):
        return Refusal(403, "a page of another site sent this; start the gateway with --cors to let it")
    return None


def _wrong_kind(method: str, headers: Headers) -> Refusal | None:
    """A form can send whatever a page wants, but not JSON that is called so."""
    if method != "POST" and not _values(headers, b"transfer-encoding") and not _has_length(headers):
        return None
    kinds = _values(headers, b"content-type")
    if len(kinds) == 1 and _JSON.fullmatch(kinds[0].strip()):
        return None
    return Refusal(415, "the body must be called what it is; send content-type: application/json")


def _has_length(headers: Headers) -> bool:
    return any(value.strip() != "0" for value in _values(headers, b"content-length"))


def _values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key == name]
