"""What the HTTP application needs of an API that clients speak. Each family is a folder beside this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from starlette.routing import BaseRoute

from gateway.core.errors import GatewayError


class ApiFamily(Protocol):
    """One API that clients speak, such as OpenAI's: its routes, and the shape of its errors."""

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """The family's routes."""

    def error_body(self, error: GatewayError) -> Mapping[str, Any]:
        """Return an error in the family's shape."""
