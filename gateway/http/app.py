"""The ASGI application: API families and the node's own routes, behind the checks that every request passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from gateway.http.api_family import ApiFamily
from gateway.http.api_keys import ApiKeys
from gateway.http.auth_throttle import AuthThrottle
from gateway.http.errors import ErrorResponses
from gateway.http.middleware import KeyCheck, OriginCheck, RequestId
from gateway.http.origin_check import OriginPolicy

# What OpenAI's own clients send from a page beside the usual.
PAGE_HEADERS = (
    "authorization", "content-type", "x-api-key", "x-stainless-arch", "x-stainless-helper-method", "x-stainless-lang",
    "x-stainless-os", "x-stainless-package-version", "x-stainless-retry-count", "x-stainless-runtime",
    "x-stainless-runtime-version", "x-stainless-timeout",
)  # fmt: skip
PREFLIGHT_S = 600


class AccessPolicy(NamedTuple):
    """What decides which requests are served."""

    origins: OriginPolicy
    keys: ApiKeys
    throttle: AuthThrottle


def build_app(
    families: Sequence[ApiFamily], routes: Sequence[BaseRoute], policy: AccessPolicy, errors: ErrorResponses
) -> Starlette:
    """Return the application that serves the families' routes and these."""
    all_routes = [*(route for family in families for route in family.routes), *routes]
    return Starlette(routes=all_routes, exception_handlers=errors.handlers(), middleware=middleware(policy, errors))


def middleware(policy: AccessPolicy, errors: ErrorResponses) -> list[Middleware]:
    """Return what a request passes before the routes, outermost first.

    CORS comes before the key check, so that a listed page can read that its key was refused.
    """
    pages = Middleware(
        CORSMiddleware,
        allow_origins=sorted(policy.origins.listed_origins),
        allow_methods=["GET", "POST"],
        allow_headers=PAGE_HEADERS,
        expose_headers=["retry-after", "retry-after-ms", "x-request-id", "x-should-retry"],
        max_age=PREFLIGHT_S,
    )
    return [
        Middleware(RequestId),
        Middleware(OriginCheck, policy=policy.origins, errors=errors),
        *([pages] if policy.origins.listed_origins else []),
        Middleware(KeyCheck, keys=policy.keys, throttle=policy.throttle, errors=errors),
    ]
