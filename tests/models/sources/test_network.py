"""Variables that name no usable hub, proxy or certificates: one sentence with their name, before any request."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.cache import ModelCache
from models.card import ModelCard
from models.errors import DownloadError
from models.sources import network
from models.sources.fetch import fetch
from tests.support.model_servers import FakeServer, ignore


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "http_proxy"])
@pytest.mark.parametrize(
    ("proxy", "reason"),
    [
        ("socks5://me:secret@127.0.0.1:9", "names a SOCKS proxy, for which a package is missing; install it with"),
        ("socks5h://127.0.0.1:9", "names a SOCKS proxy"),
        ("socks://127.0.0.1:9", "names a proxy of the kind socks://, which cannot be used; name one that begins"),
        ("socks4://127.0.0.1:9", "names a proxy of the kind socks4://"),
        ("http://127.0.0.1:port", "is not the address of a proxy; write it as http://HOST:PORT"),
        ("http://", "is not the address of a proxy"),
    ],
)
def test_unusable_proxy_is_named_without_its_password(
    hub: FakeServer,
    hub_card: ModelCard,
    cache: ModelCache,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    proxy: str,
    reason: str,
) -> None:
    monkeypatch.setattr(network, "find_spec", lambda package: None)
    monkeypatch.setenv(name, proxy)
    with pytest.raises(DownloadError, match=f"^{name} {reason}") as refused:
        fetch(hub_card, None, cache, ignore)
    assert "secret" not in str(refused.value)
    assert hub.requests == []


@pytest.mark.parametrize("proxy", ["http://proxy.lan:3128", "proxy.lan:3128", "https://me:secret@10.0.0.1", ""])
def test_plain_proxy_is_accepted(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    network.check_network_variables()


def test_socks_proxy_is_accepted_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    monkeypatch.setattr(network, "find_spec", lambda package: package)
    network.check_network_variables()


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file or directory"), ("no PEM", "")])
def test_unusable_certificates_are_named(
    hub: FakeServer,
    hub_card: ModelCard,
    cache: ModelCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
    reason: str,
) -> None:
    file = tmp_path / "certificates.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(
        DownloadError, match=rf"^SSL_CERT_FILE names {file}, which cannot be used \(.*{reason}"
    ) as found:
        fetch(hub_card, None, cache, ignore)
    assert "room" not in str(found.value)


@pytest.mark.parametrize("endpoint", ["mirror.lan", "ftp://mirror.lan", "http://", "https:///hub"])
def test_endpoint_that_is_no_url_is_named(
    hub: FakeServer, hub_card: ModelCard, cache: ModelCache, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(DownloadError, match=r"^HF_ENDPOINT is .*, which is not the URL of a hub"):
        fetch(hub_card, None, cache, ignore)
