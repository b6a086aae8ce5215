"""The exchange of proofs at a join port, without sockets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import pytest

from bus.messages import JoinAccept, JoinRequest
from bus.net.endpoints import with_key
from bus.peering.authenticator import BUS, JOIN, Authenticator
from cluster.failures import FailureCode
from cluster.join_code import new_join_code
from cluster.membership import JoinRefused
from cluster.roles import Role
from tests.support.bus import KEYS, code_of, hub_config, new_node, run_folder

A, B = new_node(), new_node()
ENDPOINTS = {node: with_key("tcp://127.0.0.1:1", KEYS[node].public) for node in (A, B)}


@pytest.fixture
def both() -> Iterator[tuple[Authenticator, Authenticator]]:
    """Make two nodes with the code of one cluster, which do not know each other."""
    with ExitStack() as stack:
        first, second = (
            Authenticator(hub_config(stack.enter_context(run_folder()), node), code_of("home")) for node in (A, B)
        )
        yield first, second


def exchange(first: Authenticator, second: Authenticator) -> tuple[JoinRequest, JoinAccept]:
    """Have the first node join at the second."""
    request = first.join_request(ENDPOINTS[A])
    accept = second.check_request(KEYS[A].public, request, ENDPOINTS[B])
    first.check_accept(accept)
    return request, accept


def test_exchange_makes_both_nodes_members(both: tuple[Authenticator, Authenticator]) -> None:
    first, second = both
    assert first.authenticate(BUS, KEYS[B].public) == second.authenticate(BUS, KEYS[A].public) == ""
    exchange(first, second)
    assert first.authenticate(BUS, KEYS[B].public) == B
    assert second.authenticate(BUS, KEYS[A].public) == A


def test_revoked_key_is_refused_at_both_ports(both: tuple[Authenticator, Authenticator]) -> None:
    first, second = both
    exchange(first, second)
    assert second.authenticate(JOIN, KEYS[A].public) == KEYS[A].public.hex()
    assert second.revoke(A, B) == (A,)
    assert second.revoke(A) == ()
    assert second.authenticate(JOIN, KEYS[A].public) == second.authenticate(BUS, KEYS[A].public) == ""
    with pytest.raises(JoinRefused) as refused:
        exchange(first, second)
    assert refused.value.code is FailureCode.REVOKED


def test_accept_with_wrong_proof_is_refused(both: tuple[Authenticator, Authenticator]) -> None:
    first, second = both
    _, accept = exchange(first, second)
    for changed in (
        msgspec.structs.replace(accept, proof=bytes(32)),
        msgspec.structs.replace(accept, endpoint=with_key("tcp://127.0.0.1:1", KEYS[new_node()].public)),
    ):
        with pytest.raises(JoinRefused, match="does not belong to cluster home"):
            first.check_accept(changed)


def test_own_key_is_recognized(both: tuple[Authenticator, Authenticator]) -> None:
    first, _ = both
    request = first.join_request(ENDPOINTS[A])
    for incarnation, code in ((1, FailureCode.SELF), (2, FailureCode.DUPLICATE)):
        own = msgspec.structs.replace(request, incarnation=incarnation)
        with pytest.raises(JoinRefused) as refused:
            first.check_request(KEYS[A].public, own, ENDPOINTS[A])
        assert refused.value.code is code


def test_only_a_matching_code_is_adopted(both: tuple[Authenticator, Authenticator]) -> None:
    first, second = both
    second.rotate()
    for text in ("no code", new_join_code("work").text(), second.code.invite(Role.OBSERVER).text(), first.code.text()):
        assert not first.adopt(text)
    assert first.adopt(second.code.text())
    exchange(first, second)
