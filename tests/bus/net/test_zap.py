"""CURVE handshakes with a ZAP handler, without one, and with one with a callback that raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import zmq

from bus.net.endpoints import address_of, with_key
from bus.net.keys import KeyPair, new_key_pair
from bus.net.sockets import CurveServer, bind_ipc, bind_tcp, connect, open_socket
from bus.net.zap import ZapHandler
from tests.support.bus import run_folder

SERVER, GOOD, BAD = new_key_pair(), new_key_pair(), new_key_pair()
WITHIN_MS = 3000


@contextmanager
def listener(allow: Callable[[str, bytes], str] | None) -> Iterator[tuple[zmq.Socket[bytes], str, ZapHandler | None]]:
    """Open a CURVE port. Yields its socket, its endpoint, and its handler, if it has one."""
    context = zmq.Context()
    handler = ZapHandler(context, allow) if allow else None
    router = open_socket(context, zmq.ROUTER)
    try:
        yield router, bind_tcp(router, "127.0.0.1", 0, CurveServer(SERVER, "test")), handler
    finally:
        if handler:
            handler.close()
        context.destroy(linger=0)


@contextmanager
def client(endpoint: str, pair: KeyPair | None) -> Iterator[zmq.Socket[bytes]]:
    """Connect a DEALER as the owner of a pair, or without security, and send a message."""
    with zmq.Context() as context, open_socket(context, zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.IMMEDIATE, 0)
        if pair:
            connect(dealer, endpoint, pair)
        else:
            dealer.connect(address_of(endpoint))
        dealer.send(b"hello")
        yield dealer


def allow_good(domain: str, key: bytes) -> str:
    return "good" if (domain, key) == ("test", GOOD.public) else ""


def user_of_message(router: zmq.Socket[bytes], endpoint: str, pair: KeyPair | None, within_ms: int = WITHIN_MS) -> str:
    """Return the user id of the message that came, or an empty text if none came."""
    with client(endpoint, pair):
        if not router.poll(within_ms):
            return ""
        source, _ = router.recv_multipart(copy=False)
        return str(source.get("User-Id"))


def test_accepted_key_gets_the_handlers_user_id() -> None:
    with listener(allow_good) as (router, endpoint, _):
        assert user_of_message(router, endpoint, GOOD) == "good"


def test_unknown_key_is_refused() -> None:
    with listener(allow_good) as (router, endpoint, _):
        assert not user_of_message(router, endpoint, BAD, 500)
        assert user_of_message(router, endpoint, GOOD) == "good"


def test_client_without_key_is_refused() -> None:
    with listener(allow_good) as (router, endpoint, _):
        assert not user_of_message(router, endpoint, None, 500)
        assert user_of_message(router, endpoint, GOOD) == "good"


def test_wrong_server_key_is_refused() -> None:
    with listener(allow_good) as (router, endpoint, _):
        assert not user_of_message(router, with_key(address_of(endpoint), BAD.public), GOOD, 500)


def test_without_handler_all_keys_are_refused() -> None:
    with listener(None) as (router, endpoint, _):
        assert not user_of_message(router, endpoint, GOOD, 1000)


def test_raising_callback_refuses_one_key_only() -> None:
    def allow(domain: str, key: bytes) -> str:
        if key == BAD.public:
            raise RuntimeError("as a broken callback does")
        return allow_good(domain, key)

    with listener(allow) as (router, endpoint, _):
        for _ in range(3):
            assert not user_of_message(router, endpoint, BAD, 200)
        assert user_of_message(router, endpoint, GOOD) == "good"


def test_closed_handler_refuses_all_keys() -> None:
    with listener(allow_good) as (router, endpoint, handler):
        assert handler is not None
        handler.close()
        assert not user_of_message(router, endpoint, GOOD, 1000)
        handler.close()  # closing it twice is no error


def test_only_ipc_needs_no_key() -> None:
    with run_folder() as folder, zmq.Context() as context, open_socket(context, zmq.ROUTER) as both:
        bind_ipc(both, f"ipc://{folder}/both")
        tcp = bind_tcp(both, "127.0.0.1", 0, CurveServer(SERVER, "test"))
        with client(tcp, None):
            assert not both.poll(500)
        with client(f"ipc://{folder}/both", None):
            assert both.poll(WITHIN_MS)
            source, _ = both.recv_multipart(copy=False)
            with pytest.raises(zmq.ZMQError):
                source.get("User-Id")


def test_tcp_endpoint_without_key_is_refused() -> None:
    with (
        zmq.Context() as context,
        open_socket(context, zmq.DEALER) as dealer,
        pytest.raises(ValueError, match="does not name its node's key"),
    ):
        connect(dealer, "tcp://127.0.0.1:1", GOOD)
