"""`gateway.core.instance_provider`: sessions open on a known instance; the node is asked for one only if necessary."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from bus.messages import InstanceDown, InstanceEnsure, InstanceReady, InstanceUp, NodeRecorded, Reply, Work
from cluster.failures import FailureCode
from cluster.openings import SessionFailure
from cluster.placement import Instance
from cluster.roles import Role
from cluster.topology import NodeRecord, RecordNumber
from gateway.core import retries
from gateway.core.data_plane import DataPlane
from gateway.core.errors import GatewayError
from gateway.core.events import GenerationFailed
from gateway.core.generator import Generator
from gateway.core.instance_provider import InstanceProvider
from gateway.core.request import GenerationRequest, TokenIds
from gateway.core.text_models import TextModels
from models.cache import ModelCache
from models.catalogue import Catalogue
from tests.support.bus import client, described
from tests.support.gateway.chat import PLAIN, answering, held_up, post
from tests.support.gateway.gateway_rig import MODEL, NODE_ID, ActorThread, Rig, eventually, running_rig
from tests.support.gateway.text_stage import EPOCH, WITHIN_S
from tests.support.templates import rendering

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


def test_refused_opening_is_repeated_until_it_is_accepted(warm_rig: Rig) -> None:
    def ready(work: Work) -> Reply:
        if asked(warm_rig) == before + 3:
            warm_rig.set_script("Hello again")
        return InstanceReady(placed(warm_rig))

    warm_rig.set_script("", end=False, failure=REPLACED)
    before, opened = asked(warm_rig), len(warm_rig.stage.openings)
    with answering(warm_rig, ready):
        assert "Hello again" in post(warm_rig, PLAIN).text
    assert (asked(warm_rig), len(warm_rig.stage.openings)) == (before + 3, opened + 4)


def test_instance_with_silent_stages_is_not_used_again(warm_rig: Rig) -> None:
    def ready(work: Work) -> Reply:
        if asked(warm_rig) == before + 2:
            warm_rig.set_script("Hello again")
            return InstanceReady(placed(warm_rig))
        return InstanceReady(ended)

    (stage,) = warm_rig.instance.stages
    ended = msgspec.structs.replace(placed(warm_rig), stages=(msgspec.structs.replace(stage, actor="engine-9"),))
    warm_rig.set_script("", end=False, failure=REPLACED)
    before, opened = asked(warm_rig), len(warm_rig.stage.openings)
    with answering(warm_rig, ready):
        assert "Hello again" in post(warm_rig, PLAIN).text
    assert (asked(warm_rig), len(warm_rig.stage.openings)) == (before + 2, opened + 2)


def test_request_waits_for_an_actor_that_restarts(rig: Rig) -> None:
    async def undeliverable() -> None:
        async with client(rig.config.run_path, NODE_ID, "asker") as bus:
            await described(bus, lambda state: state.counters.get("undeliverable", 0) > 1)

    rig.node.stop()
    with ThreadPoolExecutor(1) as pool:
        response = pool.submit(post, rig, PLAIN)
        asyncio.run(undeliverable())
        again = ActorThread(rig.config.run_path, "node", rig.node.answers)
        again.begin()
        assert response.result().status_code == 200
        again.stop()


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


def test_last_failure_is_reported_in_the_end(warm_rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failure() -> GatewayError:
        async with client(warm_rig.config.run_path, NODE_ID, "asker") as bus, rendering() as renderer:
            models = TextModels(
                bus, Catalogue.load(warm_rig.config.cards_path), renderer, ModelCache(Path(warm_rig.config.cache_dir))
            )
            plane = DataPlane(tmp_path)
            receiving = asyncio.create_task(plane.run())
            generator = Generator(bus, models, plane, InstanceProvider(bus))
            async with asyncio.timeout(WITHIN_S), generator.running(request) as generation:
                event = await generation.next_event()
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
            plane.close()
        assert isinstance(event, GenerationFailed)
        return event.error

    monkeypatch.setattr(retries, "RETRY_FOR_S", 0.5)
    request = GenerationRequest(MODEL, TokenIds((1, 2, 3)))
    warm_rig.set_script("", end=False, failure=REPLACED)
    opened = len(warm_rig.stage.openings)
    error = asyncio.run(failure())
    assert (error.code, error.retryable, error.retry_after_s) == (FailureCode.REPLACED, True, 1)
    assert len(warm_rig.stage.openings) > opened + 1


def test_client_that_leaves_as_a_session_fails_asks_for_no_other(rig: Rig, tmp_path: Path) -> None:
    async def leave_at_each_step() -> None:
        async with client(rig.config.run_path, NODE_ID, "asker") as bus, rendering() as renderer:
            models = TextModels(
                bus, Catalogue.load(rig.config.cards_path), renderer, ModelCache(Path(rig.config.cache_dir))
            )
            await models.get(await models.card(MODEL))
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
