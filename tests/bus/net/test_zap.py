"""The doors themselves: real CURVE handshakes, with a handler, without one, and with one whose callback raises."""

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
def door(allow: Callable[[str, bytes], str] | None) -> Iterator[tuple[zmq.Socket[bytes], str, ZapHandler | None]]:
    """A guarded port, its end point, and its handler if it has one."""
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
def knocking(endpoint: str, pair: KeyPair | None) -> Iterator[zmq.Socket[bytes]]:
    """A DEALER with a message on its way, as the owner of a pair, or without any security."""
    with zmq.Context() as context, open_socket(context, zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.IMMEDIATE, 0)
        if pair:
            connect(dealer, endpoint, pair)
        else:
            dealer.connect(address_of(endpoint))
        dealer.send(b"let me in")
        yield dealer


def allow_good(domain: str, key: bytes) -> str:
    return "good" if (domain, key) == ("test", GOOD.public) else ""


def gets_in(router: zmq.Socket[bytes], endpoint: str, pair: KeyPair | None, within_ms: int = WITHIN_MS) -> str:
    """The user id under which the message came, or nothing when none came while a good one did."""
    with knocking(endpoint, pair):
        if not router.poll(within_ms):
            return ""
        source, _ = router.recv_multipart(copy=False)
        return str(source.get("User-Id"))


def test_a_known_key_gets_in_under_the_name_that_the_handler_gave() -> None:
    with door(allow_good) as (router, endpoint, _):
        assert gets_in(router, endpoint, GOOD) == "good"


def test_an_unknown_key_stays_out() -> None:
    with door(allow_good) as (router, endpoint, handler):
        assert not gets_in(router, endpoint, BAD, 500)
        assert handler is not None
        assert handler.counters["refused: key for test"] >= 1
        assert gets_in(router, endpoint, GOOD) == "good"


def test_a_client_without_any_key_stays_out() -> None:
    with door(allow_good) as (router, endpoint, _):
        assert not gets_in(router, endpoint, None, 500)
        assert gets_in(router, endpoint, GOOD) == "good"


def test_the_wrong_server_key_opens_nothing() -> None:
    with door(allow_good) as (router, endpoint, _):
        assert not gets_in(router, with_key(address_of(endpoint), BAD.public), GOOD, 500)


def test_without_a_handler_nobody_gets_in() -> None:
    with door(None) as (router, endpoint, _):
        assert not gets_in(router, endpoint, GOOD, 1000)


def test_a_callback_that_raises_refuses_one_and_serves_the_next() -> None:
    def allow(domain: str, key: bytes) -> str:
        if key == BAD.public:
            raise RuntimeError("as a broken callback does")
        return allow_good(domain, key)

    with door(allow) as (router, endpoint, _):
        for _ in range(3):
            assert not gets_in(router, endpoint, BAD, 200)
        assert gets_in(router, endpoint, GOOD) == "good"


def test_after_the_handler_is_closed_nobody_new_gets_in() -> None:
    with door(allow_good) as (router, endpoint, handler):
        assert handler is not None
        handler.close()
        assert not gets_in(router, endpoint, GOOD, 1000)
        handler.close()  # twice is no error


def test_one_socket_hears_its_own_user_plainly_and_the_network_only_with_a_key() -> None:
    with run_folder() as folder, zmq.Context() as context, open_socket(context, zmq.ROUTER) as both:
        bind_ipc(both, f"ipc://{folder}/both")
        tcp = bind_tcp(both, "127.0.0.1", 0, CurveServer(SERVER, "test"))
        with knocking(tcp, None):
            assert not both.poll(500)
        with knocking(f"ipc://{folder}/both", None):
            assert both.poll(WITHIN_MS)
            source, _ = both.recv_multipart(copy=False)
            with pytest.raises(zmq.ZMQError):
                source.get("User-Id")


def test_a_tcp_end_point_cannot_be_dialled_without_knowing_whom() -> None:
    with (
        zmq.Context() as context,
        open_socket(context, zmq.DEALER) as dealer,
        pytest.raises(ValueError, match="does not name its node's key"),
    ):
        connect(dealer, "tcp://127.0.0.1:1", GOOD)
