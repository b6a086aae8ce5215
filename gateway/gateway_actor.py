"""The gateway's process: the bus actor and the HTTP server side by side on one loop. Answers are `chat`'s."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from bus.actor import on
from bus.client import BusClient
from bus.dataplane.actor import DataPlaneActor
from bus.messages import DownloadProgress, InstanceDown, PeerDown, Status
from bus.process import CannotStart
from bus.wire import Envelope
from common.config import API_FILE, DEFAULT_API_PORT, NodeConfig, ports_to_try
from gateway.core.data_plane import DataPlane
from gateway.core.generation import Chat
from gateway.core.redaction import keep_words_out_of_logs
from gateway.core.text_models import TextModels
from gateway.http.api_keys import ApiKeys, check_open
from gateway.http.app import AccessPolicy, build_app
from gateway.http.auth_throttle import AuthThrottle
from gateway.http.connection import ConnectionLimits, most_connections
from gateway.http.origin_check import site
from gateway.http.server import Server, make_server
from models.catalogue import Catalogue
from models.template_renderer import TemplateRenderer

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104


class GatewayActor(DataPlaneActor):
    """Hears what may end or delay a session; everything else comes over HTTP and the data plane."""

    name = "gateway"

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        super().__init__(config, bus)
        self._tasks: list[asyncio.Task[None]] = []
        self._renderer = TemplateRenderer()
        self._plane: DataPlane
        self._chat: Chat
        self._server: Server

    async def started(self) -> None:
        """Listen for clients and for tokens, then say where."""
        keep_words_out_of_logs(asyncio.get_running_loop())
        config = self._config
        keys = ApiKeys(Path(config.api_keys) if config.api_keys else None)
        check_open(config.api_host, keys)
        listener = listen(config)
        doors = AccessPolicy(
            site(config.api_host, listener.getsockname()[1], config.api_names, config.cors), keys, AuthThrottle()
        )
        texts = TextModels(self.bus, Catalogue.load(config.cards_path), self._renderer)
        await self.follow_links()
        self._plane = DataPlane(config.run_path, self._access)
        self._chat = Chat(self.bus, texts, self._plane)
        app = build_app(config, self.bus, texts, self._chat, doors)
        self._server = make_server(app, ConnectionLimits(most=most_connections()))
        for running in (self._server.serve([listener]), self._plane.run()):
            task = asyncio.create_task(running)
            task.add_done_callback(lambda _: self.stop())
            self._tasks.append(task)
        self._renderer.begin()
        announce(config, listener)

    async def stopping(self) -> None:
        """End the answers that run. Raises what ended the server or the data plane before its time."""
        if not self._tasks:
            return
        serving, hearing = self._tasks
        self._plane.fail_where(lambda _: True, "this gateway is stopping; try again")
        self._server.should_exit = True
        hearing.cancel()
        results = await asyncio.gather(serving, hearing, return_exceptions=True)
        self._plane.close()
        await self._renderer.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    @on(DownloadProgress)
    async def progress(self, message: DownloadProgress, envelope: Envelope) -> None:
        """Somebody may wait for this download."""
        share = 100 * message.done_bytes // max(message.total_bytes, 1)
        self._chat.tell(message.model_id, f"downloading {message.model_id}: {share} %")

    @on(Status)
    async def status(self, message: Status, envelope: Envelope) -> None:
        """Somebody may wait for this model to load."""
        self._chat.tell(message.subject, message.text)

    @on(InstanceDown)
    async def instance_down(self, message: InstanceDown, envelope: Envelope) -> None:
        """Its sessions end at once."""
        sentence = f"the model lost a part of its ring: {message.reason}; try again"
        self._plane.fail_where(lambda instance: instance.instance_id == message.instance_id, sentence)

    @on(PeerDown)
    async def peer_down(self, message: PeerDown, envelope: Envelope) -> None:
        """The sessions that ran over that node end at once, and it is believed no more."""
        await super().peer_down(message, envelope)
        sentence = f"node {message.node_id} is gone: {message.reason}; try again"
        self._plane.fail_where(lambda instance: message.node_id in instance.node_ids, sentence)


def listen(config: NodeConfig) -> socket.socket:
    """The listening socket; after a restart, on the port from before if nothing else was asked. Raises CannotStart."""
    *preferred, last = ports_to_try(config.api_port, DEFAULT_API_PORT)
    if last == 0 and (before := _port_before(config)):
        preferred.insert(0, before)
    for port in preferred:
        with suppress(OSError):
            return _bound(config.api_host, port)
    try:
        return _bound(config.api_host, last)
    except OSError as error:
        sentence = (
            f"the gateway cannot listen on {config.api_host}:{last} ({error.strerror}); "
            "pass another --api-port or --api-host"
        )
        raise CannotStart(sentence) from None


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)


def announce(config: NodeConfig, listener: socket.socket) -> None:
    """Write the gateway's URL into the run folder, whole or not at all."""
    host = _ANYWHERE.get(config.api_host, config.api_host)
    place = f"[{host}]" if ":" in host else host
    path = _api_file(config)
    part = path.with_suffix(".part")
    part.write_text(f"http://{place}:{listener.getsockname()[1]}")
    os.replace(part, path)


def _api_file(config: NodeConfig) -> Path:
    return config.run_path / API_FILE


def _port_before(config: NodeConfig) -> int:
    with suppress(OSError, ValueError):
        return urlsplit(_api_file(config).read_text()).port or 0
    return 0
