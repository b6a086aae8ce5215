"""`actors.own_record`: when a record is due. Real hub."""

from __future__ import annotations

import asyncio
from pathlib import Path

from actors.own_record import OwnRecord
from bus.messages import NodeRecorded
from cluster.capabilities import DeviceCapabilities
from cluster.roles import Role
from cluster.room import StageUse
from tests.support.actors import A, config_of
from tests.support.bus import WITHIN_S, client, in_time, next_message, running_hub


def test_use_of_a_stage_makes_no_record_due() -> None:
    async def test(run_dir: Path) -> None:
        async with client(run_dir, A, "node") as bus, client(run_dir, A, "observer", NodeRecorded) as observer:
            assert in_time(lambda: bus.has_subscribers(NodeRecorded))
            own = OwnRecord(config_of(run_dir, Role.MEMBER), bus)
            for uses, stages_left in (((), 8), ((StageUse("i", 1),), 8), ((StageUse("i", 2),), 8), ((), 7)):
                record = own.make(DeviceCapabilities(stages_left=stages_left))
                await own.publish_if_due(NodeRecorded(record, uses=uses))
            published = [(await next_message(observer, NodeRecorded))[0] for _ in range(2)]
            assert [one.record.capabilities.stages_left for one in published] == [8, 7]

    with running_hub(A) as hub:
        asyncio.run(asyncio.wait_for(test(hub.run_dir), WITHIN_S))
