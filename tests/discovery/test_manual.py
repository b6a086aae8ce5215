"""`discovery.manual`: which texts name a peer, and the error for all others."""

from __future__ import annotations

import pytest

from discovery.manual import peer_endpoint


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("192.168.1.20:7000", "tcp://192.168.1.20:7000"),
        ("192.168.1.20", "tcp://192.168.1.20:52414"),
        ("  kitchen.local:1 ", "tcp://kitchen.local:1"),
        ("kitchen", "tcp://kitchen:52414"),
        ("[fe80::1]:7000", "tcp://[fe80::1]:7000"),
        ("[::1]", "tcp://[::1]:52414"),
        ("host:65535", "tcp://host:65535"),
    ],
)
def test_peer_becomes_a_join_endpoint(text: str, endpoint: str) -> None:
    assert peer_endpoint(text) == endpoint


@pytest.mark.parametrize(
    "text",
    ["", " ", ":7000", "host:", "host:0", "host:65536", "host:-1", "host:port", "tcp://host:7000", "host:7000/x", "::1",
     "fe80::1:7000", "a b:7000", "host:٣", "[::1", "[nonsense]:1", "*:7000"],
)  # fmt: skip
def test_other_text_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not host:port, for example --peer 192\.168\.1\.20:52414"):
        peer_endpoint(text)
