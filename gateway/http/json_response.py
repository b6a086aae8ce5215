"""JSON as it is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response


class JsonResponse(Response):
    """A response with JSON in ASCII as its body."""

    media_type = "application/json"

    def render(self, content: Mapping[str, Any]) -> bytes:
        """Return the body."""
        return encode_json(content)


def encode_json(body: Mapping[str, Any]) -> bytes:
    """Return JSON in ASCII: no client misreads U+2028, and no byte is half a character."""
    return json.dumps(body, separators=(",", ":")).encode("ascii")
