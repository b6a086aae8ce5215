"""The variables that say how to reach a hub, checked before the first request. Sends nothing.

The hub's library reads them as well, and fails on those that it cannot use with errors that do not name them.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import getproxies

from models.errors import DownloadError

_EXAMPLE = "https://huggingface.co"
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


def hub_endpoint() -> str | None:
    """Return HF_ENDPOINT without a slash at its end, or None for the library's own. Raises DownloadError.

    It is read at each use, since the library reads it only when it is imported.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/")
    if endpoint and not (endpoint.startswith(("http://", "https://")) and urlsplit(endpoint).netloc):
        raise DownloadError(f"HF_ENDPOINT is {endpoint!r}, which is not the URL of a hub such as {_EXAMPLE}")
    return endpoint or None


def check_network_variables() -> None:
    """Raise DownloadError if a proxy variable or SSL_CERT_FILE has a value that cannot be used."""
    proxies = getproxies()
    for kind in ("http", "https", "all"):
        if proxy := proxies.get(kind):
            _check_proxy(_name_of(f"{kind}_proxy", proxy, os.environ), proxy)
    _check_certificates(os.environ.get("SSL_CERT_FILE", ""))


def _name_of(variable: str, value: str, environment: Mapping[str, str]) -> str:
    """Return the variable as it is written: both cases are in use. The proxy may also be a setting of the system."""
    names = [name for name, found in environment.items() if name.lower() == variable and found == value]
    return names[0] if names else f"the system's {variable}"


def _check_proxy(name: str, proxy: str) -> None:
    """Raise DownloadError unless the proxy can be used. The sentence does not show it: it may hold a password."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is not a number, or a bracket is missing
        usable = False
    if not usable:
        raise DownloadError(f"{name} is not the address of a proxy; write it as http://HOST:PORT, or remove it")
    if parts.scheme not in _PROXY_SCHEMES:
        raise DownloadError(
            f"{name} names a proxy of the kind {parts.scheme}://, which cannot be used; "
            "name one that begins with http:// or https://"
        )
    if parts.scheme.startswith("socks") and find_spec("socksio") is None:
        raise DownloadError(
            f"{name} names a SOCKS proxy, for which a package is missing; "
            "install it with `pip install socksio`, or name a proxy that begins with http://"
        )


def _check_certificates(file: str) -> None:
    """Raise DownloadError unless the file, if one is named, holds certificates."""
    try:
        if file:
            ssl.create_default_context(cafile=file)
    except OSError as error:  # of the disk, or of ssl
        reason = error.strerror or "it holds no certificates"
        raise DownloadError(f"SSL_CERT_FILE names {file}, which cannot be used ({reason}); correct it") from None
