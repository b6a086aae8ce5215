"""OpenAI's API as a family of the gateway: its routes and its errors."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cluster.placement import Instance
from gateway.core.errors import ErrorKind, GatewayError
from gateway.core.generator import Generator
from gateway.core.instance_provider import InstanceProvider
from gateway.core.prompt_limit import prompt_limit
from gateway.core.text_models import TextModels
from gateway.http.json_response import JsonResponse
from gateway.openai.chat_completions import ChatCompletions
from gateway.openai.errors import error_body
from models.cache import ModelCache
from models.card import FolderSource, HubSource, ModelCard, PackageSource

MAX_DIGITS = 12
_SIZES = (
    "n_layers", "hidden_size", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "context_length", "layer_bytes",
    "embedding_bytes", "tied_embedding", "packed",
)  # fmt: skip


class OpenAiFamily:
    """Chat completions and the list of models."""

    def __init__(
        self, generator: Generator, models: TextModels, cache: ModelCache, instances: InstanceProvider
    ) -> None:
        self._models = models
        self._instances = instances
        self._cache = cache
        self._since = int(time.time())
        self.routes = (
            Route("/v1/chat/completions", ChatCompletions(generator), methods=["POST"]),
            Route("/v1/models", self.list_models),
            Route("/v1/models/{model_id:path}", self.retrieve_model),
        )

    def error_body(self, error: GatewayError) -> Mapping[str, Any]:
        """Return an error in OpenAI's shape."""
        return error_body(error)

    async def list_models(self, request: Request) -> Response:
        """Return all cards of the catalogue."""
        data = [self._model_body(card) for card in self._models.catalogue.cards()]
        return JsonResponse({"object": "list", "data": data})

    async def retrieve_model(self, request: Request) -> Response:
        """Return one card, by id, alias or name of the hub, and why this quantization was chosen if it was."""
        context = request.query_params.get("context", "0")
        if not context.isascii() or not context.isdigit() or len(context) > MAX_DIGITS:
            sentence = f"context is a number of positions, not {context!r}"
            raise GatewayError(ErrorKind.INVALID_REQUEST, sentence)
        card, why = await self._models.described(request.path_params["model_id"], int(context))
        return JsonResponse(self._model_body(card) | {"why": why})

    def _model_body(self, card: ModelCard) -> dict[str, Any]:
        sizes = {name: msgspec.to_builtins(getattr(card, name)) for name in _SIZES} if card.sized else {}
        own = isinstance(card.source, FolderSource)
        return {
            "id": card.id,
            "object": "model",
            "created": self._since,
            "owned_by": "exobus",
            "name": card.name or card.id,
            "aliases": list(card.aliases),
            "license": card.license,
            "family": card.family,
            "params": card.params,
            "from": _from(card),
            "own": own,
            "engine": card.engine or None,
            "quantization": _quantization(self._instances.newest(card.id)),
            "size_bytes": card.size_bytes or None,
            "downloaded_bytes": card.size_bytes if own else self._cache.bytes_here(card),
            "max_prompt_tokens": prompt_limit(card).tokens if card.sized else None,
            **sizes,
        }


def _quantization(instance: Instance | None) -> str | None:
    """Return to what the nodes rounded the float matrices of a loaded model; None if they did not."""
    bits = sorted({stage.quantized_bits for stage in instance.stages} - {0}) if instance else []
    return " and ".join(f"{count} bits" for count in bits) or None


def _from(card: ModelCard) -> str:
    """Return where a model comes from. The path of an own model is not told."""
    match card.source:
        case HubSource(repo=repo, files=files):
            return f"{repo}: {files[0]}" if files else repo
        case PackageSource(requirement=requirement):
            return requirement
        case FolderSource():
            return "this machine"
