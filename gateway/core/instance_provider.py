"""The instances that a gateway opens sessions on: those that facts name, and one on request if there is none."""

from __future__ import annotations

from bus.client import BusClient, RequestError
from bus.messages import InstanceEnsure, InstanceReady
from cluster.instances import Instances
from cluster.placement import Instance
from cluster.roles import Role
from gateway.core.errors import error_of_request
from gateway.core.session_check import StageGone
from gateway.core.session_checker import ask_stages

ENSURE_TIMEOUT_S = 3600.0  # a first download counts in it; the client may leave at any time


class InstanceProvider:
    """Finds an instance of a model. `known` follows the bus's facts; its owner feeds it."""

    def __init__(self, bus: BusClient, role: Role = Role.MEMBER) -> None:
        self.known = Instances(bus.node_id)
        self._bus = bus
        self._role = role

    def newest(self, model_id: str) -> Instance | None:
        """Return the newest instance that is known to stand, without a message on the bus.

        An observer may open no sessions: it knows of none, and its request is refused with a sentence.
        """
        return None if self._role is Role.OBSERVER else self.known.newest(model_id)

    async def ensure(self, model_id: str) -> Instance:
        """Have the model's placer name an instance, which it makes if none stands. Raises GatewayError."""
        try:
            work = InstanceEnsure(model_id)
            return (await self._bus.request("node", work, InstanceReady, ENSURE_TIMEOUT_S)).instance
        except RequestError as error:
            raise error_of_request(error) from None

    async def responds(self, instance: Instance) -> bool:
        """Return whether every stage of an instance replies at once."""
        replies = await ask_stages(self._bus, instance)
        return not any(reply is None or isinstance(reply, StageGone) for reply in replies)
