"""`gateway.core.instance_provider`: sessions open on a known instance; the node is asked for one only if necessary."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from bus.messages import InstanceDown, InstanceEnsure, InstanceReady, InstanceUp, NodeRecorded, Reply, Work
from cluster.failures import FailureCode
from cluster.openings import SessionFailure
from cluster.placement import Instance
from cluster.roles import Role
from cluster.topology import NodeRecord, RecordNumber
from gateway.core.data_plane import DataPlane
from gateway.core.generator import Generator
from gateway.core.instance_provider import InstanceProvider
from gateway.core.request import GenerationRequest, TokenIds
from gateway.core.text_models import TextModels
from models.catalogue import Catalogue
from models.templates.renderer import TemplateRenderer
from tests.support.bus import client
from tests.support.chat import PLAIN, answering, held_up, post
from tests.support.gateway_rig import MODEL, NODE_ID, Rig, eventually, running_rig
from tests.support.text_stage import EPOCH, WITHIN_S

REPLACED = SessionFailure(FailureCode.REPLACED, "this instance is being replaced; ask again", 1)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Run a gateway that knows no instance from facts yet."""
    with running_rig(tmp_path) as rig:
        rig.set_script("Hello world")
        assert asks(rig)
        yield rig
        assert rig.all_closed()


@pytest.fixture
def warm_rig(rig: Rig) -> Rig:
    """Return a gateway that knows the instance, so that its chats ask for none."""
    rig.node.publish(InstanceUp(placed(rig), (RecordNumber(1, 1),)))
    assert eventually(lambda: not asks(rig))
    return rig


def asked(rig: Rig) -> int:
    """Return how many times the node was asked for an instance so far."""
    return sum(isinstance(message, InstanceEnsure) for message in rig.node.received)


def asks(rig: Rig) -> bool:
    """Return whether the gateway asks the node for an instance before it answers a chat."""
    before = asked(rig)
    assert post(rig, PLAIN).status_code == 200
    return asked(rig) > before


def placed(rig: Rig, instance_id: str = "0011223344556677", epoch: int = EPOCH) -> Instance:
    """Return the rig's instance as this node would have placed it."""
    return msgspec.structs.replace(rig.instance, instance_id=instance_id, epoch=epoch, placer=NODE_ID)


def record(*instances: Instance) -> NodeRecorded:
    """Return the node's record with the instances that it placed."""
    return NodeRecorded(NodeRecord(NODE_ID, "rig", 1, 1), instances)


def test_instance_that_came_up_is_used_without_asking(warm_rig: Rig) -> None:
    assert not asks(warm_rig)


def test_instance_in_a_record_is_used_without_asking(rig: Rig) -> None:
    rig.node.publish(record(placed(rig)))
    assert eventually(lambda: not asks(rig))


@pytest.mark.parametrize("named", [True, False], ids=["by instance.down", "by a record that does not list it"])
def test_gateway_asks_again_once_an_instance_is_down(warm_rig: Rig, named: bool) -> None:
    down = InstanceDown(placed(warm_rig).instance_id, EPOCH, "engine-1 ended")
    warm_rig.node.publish(down if named else record())
    assert eventually(lambda: asks(warm_rig))


def test_refused_opening_is_repeated_on_another_instance(warm_rig: Rig) -> None:
    def ready(work: Work) -> Reply:
        warm_rig.set_script("Hello again")
        return InstanceReady(warm_rig.instance)

    warm_rig.set_script("", end=False, failure=REPLACED)
    before, opened = asked(warm_rig), len(warm_rig.stage.openings)
    with answering(warm_rig, ready):
        assert "Hello again" in post(warm_rig, PLAIN).text
    assert (asked(warm_rig), len(warm_rig.stage.openings)) == (before + 1, opened + 2)


def test_opening_that_is_refused_twice_fails(warm_rig: Rig) -> None:
    warm_rig.set_script("", end=False, failure=REPLACED)
    before, opened = asked(warm_rig), len(warm_rig.stage.openings)
    response = post(warm_rig, PLAIN)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "replaced")
    assert response.headers["retry-after"] == "1"
    assert (asked(warm_rig), len(warm_rig.stage.openings)) == (before + 1, opened + 2)


def test_refused_opening_is_not_repeated_on_the_same_instance(warm_rig: Rig) -> None:
    warm_rig.set_script("", end=False, failure=REPLACED)
    before, opened = asked(warm_rig), len(warm_rig.stage.openings)
    with answering(warm_rig, lambda _: InstanceReady(placed(warm_rig))):
        response = post(warm_rig, PLAIN)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "replaced")
    assert (asked(warm_rig), len(warm_rig.stage.openings)) == (before + 1, opened + 1)


def test_loss_after_the_first_token_is_not_repeated(warm_rig: Rig) -> None:
    warm_rig.set_script("Hello", end=False, failure=REPLACED)
    before = asked(warm_rig)
    response = post(warm_rig, PLAIN)
    assert (response.status_code, response.headers["x-should-retry"]) == (500, "false")
    assert asked(warm_rig) == before


def test_full_queue_is_not_repeated(warm_rig: Rig) -> None:
    warm_rig.set_script("", end=False, failure=SessionFailure(FailureCode.QUEUE_FULL, "64 generations wait already", 7))
    before = asked(warm_rig)
    assert post(warm_rig, PLAIN).status_code == 429
    assert asked(warm_rig) == before


def test_client_that_leaves_as_a_session_fails_asks_for_no_other(rig: Rig, tmp_path: Path) -> None:
    async def leave_at_each_step() -> None:
        async with client(rig.config.run_path, NODE_ID, "asker") as bus:
            models = TextModels(bus, Catalogue.load(rig.config.cards_path), TemplateRenderer())
            await models.get(models.card(MODEL))
            provider = InstanceProvider(bus)
            provider.known.announce(msgspec.structs.replace(rig.instance, stages=(unlinked,)), (RecordNumber(1, 1),))
            plane = DataPlane(tmp_path)
            generator = Generator(bus, models, plane, provider)
            request = GenerationRequest(MODEL, TokenIds((1, 2, 3)))
            for steps in range(10):  # some of them lie between the failure of the session and the second attempt
                async with asyncio.timeout(WITHIN_S), generator.running(request):
                    for _ in range(steps):
                        await asyncio.sleep(0)
            plane.close()

    unlinked = msgspec.structs.replace(rig.instance.stages[0], endpoints=("tcp://127.0.0.1:1",))
    with held_up(rig):
        asyncio.run(leave_at_each_step())


def test_observer_is_given_no_instance(rig: Rig) -> None:
    async def newest(role: Role) -> Instance | None:
        async with client(rig.config.run_path, NODE_ID, "asker") as bus:
            provider = InstanceProvider(bus, role)
            provider.known.announce(rig.instance, (RecordNumber(1, 1),))
            return provider.newest(rig.instance.model_id)

    assert asyncio.run(newest(Role.MEMBER)) == rig.instance
    assert asyncio.run(newest(Role.GATEWAY)) == rig.instance
    assert asyncio.run(newest(Role.OBSERVER)) is None
