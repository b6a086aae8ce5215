"""The routes of the gateway, and the shape of every error. Knows the bus only as something to ask."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ExceptionHandler

from bus.client import BusClient, RequestError
from bus.messages import HubDescribe, HubState, TopologyGet, TopologyState
from cluster.placement import Instance
from common.config import NodeConfig
from common.version import running_version
from gateway.core.errors import ApiError, from_bus, internal
from gateway.core.generation import Chat
from gateway.core.text_models import TextModels
from gateway.http.api_keys import ApiKeys
from gateway.http.auth_throttle import AuthThrottle
from gateway.http.middleware import OPEN_PATH, KeyCheck, OriginCheck
from gateway.http.origin_check import Site
from gateway.http.responses import Json, WithRequestId, error_response
from gateway.openai.chat_completions import ChatCompletions
from models.card import ModelCard

ASK_WITHIN_S = 3.0
NEEDED = frozenset({"node", "topology", "download"})  # actors without which no chat can be answered


# What OpenAI's own clients send from a page beside the usual.
PAGE_HEADERS = (
    "authorization", "content-type", "x-api-key", "x-stainless-arch", "x-stainless-helper-method", "x-stainless-lang",
    "x-stainless-os", "x-stainless-package-version", "x-stainless-retry-count", "x-stainless-runtime",
    "x-stainless-runtime-version", "x-stainless-timeout",
)  # fmt: skip
PREFLIGHT_S = 600


class AccessPolicy(NamedTuple):
    """What decides who may come in."""

    site: Site
    keys: ApiKeys
    attempts: AuthThrottle


def build_app(config: NodeConfig, bus: BusClient, texts: TextModels, chat: Chat, doors: AccessPolicy) -> Starlette:
    """The ASGI application."""
    views = _Views(config, bus, texts)
    routes = [
        Route("/v1/chat/completions", ChatCompletions(chat), methods=["POST"]),
        Route("/v1/models", views.models),
        Route("/v1/models/{model_id:path}", views.model),
        Route("/v1/topology", views.topology),
        Route(OPEN_PATH, views.health),
    ]
    return Starlette(routes=routes, exception_handlers=ERRORS, middleware=in_front(doors))


def in_front(doors: AccessPolicy) -> list[Middleware]:
    """What a request passes before the routes, outermost first. A listed page may read that its key was refused."""
    pages = Middleware(
        CORSMiddleware,
        allow_origins=sorted(doors.site.origins),
        allow_methods=["GET", "POST"],
        allow_headers=PAGE_HEADERS,
        expose_headers=["retry-after", "retry-after-ms", "x-request-id", "x-should-retry"],
        max_age=PREFLIGHT_S,
    )
    return [
        Middleware(WithRequestId),
        Middleware(OriginCheck, site=doors.site),
        *([pages] if doors.site.origins else []),
        Middleware(KeyCheck, keys=doors.keys, attempts=doors.attempts),
    ]


class _Views:
    """The routes that only report."""

    def __init__(self, config: NodeConfig, bus: BusClient, texts: TextModels) -> None:
        self._config = config
        self._bus = bus
        self._texts = texts
        self._since = int(time.time())
        self._version = running_version()

    async def models(self, request: Request) -> Response:
        """All cards of the catalogue."""
        return Json({"object": "list", "data": [self._model(card) for card in self._texts.catalogue.cards()]})

    async def model(self, request: Request) -> Response:
        """One card, by id or alias."""
        return Json(self._model(self._texts.card(request.path_params["model_id"])))

    async def topology(self, request: Request) -> Response:
        """The graph of nodes and links, and which layers of which model each node holds."""
        try:
            state = await self._bus.request("topology", TopologyGet(), TopologyState, ASK_WITHIN_S)
        except RequestError as error:
            raise from_bus(error) from None
        return Json(topology_body(self._config.node_id, state))

    async def health(self, request: Request) -> Response:
        """Whether the node can take a chat: its hub answers and knows the actors that are needed.

        Which node it is, is told to those who may use it.
        """
        try:
            state = await self._bus.request("hub", HubDescribe(), HubState, ASK_WITHIN_S)
            ready = {actor.name for actor in state.actors} >= NEEDED
        except RequestError:
            ready = False
        body = {"status": "ok", "ready": ready}
        if not request.state.known:
            return Json(body)
        return Json(body | {"version": self._version, "node": self._config.name, "node_id": self._config.node_id})

    def _model(self, card: ModelCard) -> dict[str, Any]:
        return {
            "id": card.id,
            "object": "model",
            "created": self._since,
            "owned_by": "exobus",
            "name": card.name,
            "aliases": list(card.aliases),
            "license": card.license,
            "context_length": card.context_length,
            "n_layers": card.n_layers,
            "size_bytes": card.size_bytes,
        }


def topology_body(own_id: str, state: TopologyState) -> dict[str, Any]:
    """The topology in plain JSON, nodes and links as the bus has them. `node_id` is the node that answers."""
    topology = state.topology
    return {
        "version": topology.version,
        "node_id": own_id,
        "nodes": msgspec.to_builtins(topology.nodes),
        "links": msgspec.to_builtins(topology.links),
        "instances": [
            _instance(instance, {node.node_id: node.name for node in topology.nodes}) for instance in state.instances
        ],
    }


def _instance(instance: Instance, names: Mapping[str, str]) -> dict[str, Any]:
    stages = [
        {
            "node_id": stage.node_id,
            "node": names.get(stage.node_id, ""),
            "engine": stage.engine,
            "start_layer": stage.shard.start_layer,
            "end_layer": stage.shard.end_layer,
            "n_layers": stage.shard.n_layers,
            "positions": stage.positions,
        }
        for stage in instance.stages
    ]
    return {"instance_id": instance.instance_id, "model": instance.model_id, "epoch": instance.epoch, "stages": stages}


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _no_route(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, in the shape of all the others."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    allowed = (error.headers or {}).get("Allow", "")
    sentence = f"{where} is not served here; use {allowed}" if allowed else f"there is no {where}; see /v1/models"
    return error_response(ApiError(error.status_code, sentence, headers=error.headers))


async def _broken(request: Request, error: Exception) -> Response:
    """Starlette raises the exception again after this, and the server logs it."""
    return error_response(internal())


async def _left(request: Request, error: Exception) -> Response:
    """The client left before its body was whole; nobody reads this."""
    return Response(status_code=408)


ERRORS: dict[Any, ExceptionHandler] = {
    ApiError: _refused,
    ClientDisconnect: _left,
    HTTPException: _no_route,
    Exception: _broken,
}
