"""The gateway's process: its actor on the bus and its HTTP server on one loop."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from bus.actor import every, on
from bus.client import BusClient
from bus.dataplane.actor import DataPlaneActor
from bus.messages import DownloadProgress, InstanceDown, InstanceUp, NodeRecorded, PeerDown, PeerUp, Status
from bus.net.identity import own_role
from bus.process import CannotStart
from bus.wire import Envelope
from common.config import API_FILE, DEFAULT_API_PORT, NodeConfig, ports_to_try
from common.files import write_atomic
from gateway.core.data_plane import DataPlane
from gateway.core.generator import Generator
from gateway.core.instance_provider import InstanceProvider
from gateway.core.progress import Downloading, Reported
from gateway.core.redaction import redact_logs
from gateway.core.session_checker import LOOK_EVERY_S, SessionChecker
from gateway.core.text_models import TextModels
from gateway.http.api_keys import ApiKeys, check_keys_required
from gateway.http.app import AccessPolicy, build_app
from gateway.http.auth_throttle import AuthThrottle
from gateway.http.connection import ConnectionLimits, max_connections
from gateway.http.errors import ErrorResponses
from gateway.http.node_routes import NodeRoutes
from gateway.http.origin_check import origin_policy
from gateway.http.server import Server, make_server
from gateway.openai.family import OpenAiFamily
from models.cache import ModelCache
from models.catalogue import Catalogue
from models.templates.renderer import TemplateRenderer

_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104


class GatewayActor(DataPlaneActor):
    """Follows the facts that name instances and end or delay sessions; requests come over HTTP."""

    name = "gateway"

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        super().__init__(config, bus)
        self._tasks: list[asyncio.Task[None]] = []
        self._renderer = TemplateRenderer()
        self._instances = InstanceProvider(bus, own_role(config))
        self._plane: DataPlane
        self._checker: SessionChecker
        self._generator: Generator
        self._server: Server

    async def started(self) -> None:
        """Listen for clients and for tokens, then write the API's address. Raises CannotStart."""
        redact_logs(asyncio.get_running_loop())
        config = self._config
        keys = ApiKeys(Path(config.api_keys) if config.api_keys else None)
        check_keys_required(config.api_host, keys)
        listener = listen(config)
        port = listener.getsockname()[1]
        origins = origin_policy(config.api_host, port, config.api_names, config.cors)
        cache = ModelCache(Path(config.cache_dir))
        models = TextModels(self.bus, Catalogue.of_node(config), self._renderer, cache)
        self._plane = DataPlane(config.run_path, self._access)
        self._checker = SessionChecker(self.bus, self._plane)
        self._generator = Generator(self.bus, models, self._plane, self._instances)
        families = (OpenAiFamily(self._generator, models, cache, self._instances),)
        errors = ErrorResponses(families)
        policy = AccessPolicy(origins, keys, AuthThrottle())
        app = build_app(families, NodeRoutes(config, self.bus).routes, policy, errors)
        self._server = make_server(app, ConnectionLimits(most=max_connections()), errors.body)
        for running in (self._server.serve([listener]), self._plane.run()):
            task = asyncio.create_task(running)
            task.add_done_callback(lambda _: self.stop())
            self._tasks.append(task)
        self._renderer.start()
        announce(config, port)

    async def stopping(self) -> None:
        """End the generations that run. Raises what ended the server or the data plane early."""
        if not self._tasks:
            return
        serving, receiving = self._tasks
        self._generator.stop()
        self._server.should_exit = True
        receiving.cancel()
        results = await asyncio.gather(serving, receiving, return_exceptions=True)
        self._plane.close()
        await self._renderer.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    @every(LOOK_EVERY_S)
    async def check_sessions(self) -> None:
        """Ask the stages for sessions of which nothing comes, so that no frame that was lost is waited for."""
        await self._checker.check()

    @on(DownloadProgress)
    async def download_progress(self, message: DownloadProgress, envelope: Envelope) -> None:
        """Show it to the generations that wait for the model."""
        progress = Downloading(message.model_id, message.done_bytes, message.total_bytes)
        self._generator.report(message.model_id, progress)

    @on(Status)
    async def status(self, message: Status, envelope: Envelope) -> None:
        """Show it to the generations that wait for the model."""
        self._generator.report(message.subject, Reported(message.text))

    @on(PeerUp)
    async def peer_up(self, message: PeerUp, envelope: Envelope) -> None:
        """Accept the node's frames, and count its word about instances."""
        await super().peer_up(message, envelope)
        self._instances.known.link(message.node_id)

    @on(InstanceUp)
    async def instance_up(self, message: InstanceUp, envelope: Envelope) -> None:
        """Open sessions on it from now on."""
        self._instances.known.announce(message.instance, message.joined)

    @on(NodeRecorded)
    async def recorded(self, message: NodeRecorded, envelope: Envelope) -> None:
        """Follow what each node holds: it makes up for lost facts, and for those before this process started."""
        before = self._standing_ids()
        self._instances.known.record(envelope.node, message.record.number, message.instances)
        self._fail_on(before - self._standing_ids(), "a node does not hold its stage any more")

    @on(InstanceDown)
    async def instance_down(self, message: InstanceDown, envelope: Envelope) -> None:
        """End its sessions at once."""
        self._instances.known.end(message.instance_id)
        self._fail_on({message.instance_id}, message.reason)

    @on(PeerDown)
    async def peer_down(self, message: PeerDown, envelope: Envelope) -> None:
        """End the sessions that run over the node at once, and accept none of its frames."""
        await super().peer_down(message, envelope)
        self._instances.known.unlink(message.node_id)
        sentence = f"node {message.name or message.node_id} is gone: {message.reason}; try again"
        self._plane.fail_where(lambda instance: message.node_id in instance.node_ids, sentence)

    def _standing_ids(self) -> set[str]:
        return {instance.instance_id for instance in self._instances.known.standing()}

    def _fail_on(self, instance_ids: set[str], reason: str) -> None:
        sentence = f"the model lost a part of its ring: {reason}; try again"
        self._plane.fail_where(lambda instance: instance.instance_id in instance_ids, sentence)


def listen(config: NodeConfig) -> socket.socket:
    """Return a listening socket; after a restart on the same port, if any will do. Raises CannotStart."""
    *preferred, last = ports_to_try(config.api_port, DEFAULT_API_PORT)
    if last == 0 and (before := _port_before(config)):
        preferred.insert(0, before)
    for port in preferred:
        with suppress(OSError):
            return _bind(config.api_host, port)
    try:
        return _bind(config.api_host, last)
    except OSError as error:
        sentence = (
            f"cannot listen on {config.api_host}:{last} ({os.strerror(error.errno or 0)}); "
            "pass another --api-port or --api-host"
        )
        raise CannotStart(sentence) from None


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)


def _port_before(config: NodeConfig) -> int:
    with suppress(OSError, ValueError):
        return urlsplit((config.run_path / API_FILE).read_text()).port or 0
    return 0


def announce(config: NodeConfig, port: int) -> None:
    """Write the gateway's URL into the run folder."""
    host = _LOOPBACK_OF.get(config.api_host, config.api_host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if config.api() != url:  # after a restart it is the same, and the disk may be full
        write_atomic(config.run_path / API_FILE, url)
