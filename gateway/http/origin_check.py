"""Which requests a browser may bring: known host names, allowed pages, JSON bodies.

A web page can make its reader's browser send requests to this machine. Such a request shows by its headers: an origin
that is not ours, a host name that only the page's DNS resolves to this address, or a body of a kind that a browser
sends without asking first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bus.process import CannotStart
from gateway.http.errors import HttpError

MAX_HEADER_BYTES = 32 << 10
MAX_TARGET_BYTES = 8 << 10

Headers = Sequence[tuple[bytes, bytes]]  # names in lower case, as ASGI has them

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#*,@]+")
_JSON = re.compile(r'application/json\s*(;\s*charset\s*=\s*"?utf-8"?\s*)?', re.IGNORECASE)
_ANYWHERE = frozenset({"", "0.0.0.0", "::"})  # noqa: S104  # addresses to listen on, not to call


@dataclass(frozen=True)
class OriginPolicy:
    """The host names of a gateway (IPv6 in brackets), its port, and the listed origins of pages that may call it."""

    hosts: frozenset[str]
    port: int
    listed_origins: frozenset[str]

    def accepts_host(self, host: str) -> bool:
        """Return whether a Host header names this gateway: one of its names, with its port or none."""
        match = _HOST.fullmatch(host)
        return bool(match and match["name"] in self.hosts and match["port"] in (None, str(self.port)))

    def accepts_origin(self, origin: str) -> bool:
        """Return whether pages of this origin may call: those on the list, and the gateway's own."""
        scheme, _, host = origin.partition("://")
        name, _, port = (host, ":", "80") if self.port == 80 else host.rpartition(":")
        own = scheme == "http" and name in self.hosts and port == str(self.port)
        return own or origin in self.listed_origins


def origin_policy(host: str, port: int, names: Iterable[str] = (), origins: Iterable[str] = ()) -> OriginPolicy:
    """Return the policy of a gateway that listens on `host` and has these further names.

    Raises CannotStart if a name is not a host name or an origin not an origin.
    """
    listed = frozenset(origin.lower().rstrip("/") for origin in origins)
    for origin in listed:
        if not _ORIGIN.fullmatch(origin):
            raise CannotStart(
                f"--cors {origin!r} is not an origin; name each page's, such as https://chat.example or http://localhost:3000"
            )
    usual = ("127.0.0.1", "localhost", "::1", *(() if host in _ANYWHERE else (host,)))
    hosts = frozenset(_bracketed(name.lower()) for name in (*usual, *names))
    for name in hosts:
        match = _HOST.fullmatch(name)
        if not match or match["port"]:
            raise CannotStart(f"--api-name {name!r} is not a host name; give it without scheme and port")
    return OriginPolicy(hosts, port, listed)


def _bracketed(name: str) -> str:
    return f"[{name}]" if name.count(":") > 1 and not name.startswith("[") else name


def refusal(method: str, target: bytes, headers: Headers, policy: OriginPolicy) -> HttpError | None:
    """Return why a request is refused, before its route is looked up; None if it is not."""
    return (
        _too_long(target, headers)
        or _wrong_host(_values(headers, b"host"), policy)
        or _wrong_origin(headers, policy)
        or _wrong_kind(method, headers)
    )


def _too_long(target: bytes, headers: Headers) -> HttpError | None:
    if len(target) > MAX_TARGET_BYTES:
        return HttpError(414, f"the path and its query are longer than {MAX_TARGET_BYTES >> 10} KiB; send less")
    if sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEADER_BYTES:
        return HttpError(431, f"the headers are larger than {MAX_HEADER_BYTES >> 10} KiB; send less")
    return None


def _wrong_host(hosts: Sequence[str], policy: OriginPolicy) -> HttpError | None:
    if len(hosts) != 1:
        return HttpError(400, f"a request names one Host, this one names {len(hosts)}")
    if not policy.accepts_host(hosts[0].lower()):
        known = ", ".join(sorted(policy.hosts))
        return HttpError(
            421, f"this gateway is not {hosts[0][:100]!r} but {known}; start it with --api-name to add a name"
        )
    return None


def _wrong_origin(headers: Headers, policy: OriginPolicy) -> HttpError | None:
    origins = _values(headers, b"origin")
    for origin in origins:
        if not policy.accepts_origin(origin):
            return HttpError(
                403, f"pages of {origin[:100]!r} may not call this gateway; start it with --cors to allow them"
            )
    if origins:
        return None
    if any(value not in ("none", "same-origin") for value in _values(headers, b"sec-fetch-site")):
        return HttpError(403, "a page of another site sent this; start the gateway with --cors to allow it")
    return None


def _wrong_kind(method: str, headers: Headers) -> HttpError | None:
    """Refuse a body that a form could send: a page can make one send any body, but not declare it as JSON."""
    if method != "POST" and not _values(headers, b"transfer-encoding") and not _has_length(headers):
        return None
    kinds = _values(headers, b"content-type")
    if len(kinds) == 1 and _JSON.fullmatch(kinds[0].strip()):
        return None
    return HttpError(415, "the body is not declared as JSON; send content-type: application/json")


def _has_length(headers: Headers) -> bool:
    return any(value.strip() != "0" for value in _values(headers, b"content-length"))


def _values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key == name]
