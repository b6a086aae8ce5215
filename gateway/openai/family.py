"""OpenAI's API as a family of the gateway: its routes and its errors."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core.errors import GatewayError
from gateway.core.generator import Generator
from gateway.core.prompt_limit import prompt_limit
from gateway.core.text_models import TextModels
from gateway.http.json_response import JsonResponse
from gateway.openai.chat_completions import ChatCompletions
from gateway.openai.errors import error_body
from models.card import ModelCard


class OpenAiFamily:
    """Chat completions and the list of models."""

    def __init__(self, generator: Generator, models: TextModels) -> None:
        self._models = models
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
        """Return one card, by id or alias."""
        return JsonResponse(self._model_body(await self._models.card(request.path_params["model_id"])))

    def _model_body(self, card: ModelCard) -> dict[str, Any]:
        return {
            "id": card.id,
            "object": "model",
            "created": self._since,
            "owned_by": "exobus",
            "name": card.name,
            "aliases": list(card.aliases),
            "license": card.license,
            "context_length": card.context_length,
            "max_prompt_tokens": prompt_limit(card).tokens,
            "n_layers": card.n_layers,
            "size_bytes": card.size_bytes,
        }
