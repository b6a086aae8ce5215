"""A real gateway with actors of the tests around it, one for each module, and OpenAI's official client."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.support.gateway.gateway_rig import Rig, running_rig
from tests.support.gateway.text_stage import WITHIN_S


@pytest.fixture(scope="module")
def module_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Run a gateway for all tests of a module."""
    with running_rig(tmp_path_factory.mktemp("gateway")) as rig:
        yield rig


@pytest.fixture
def rig(module_rig: Rig) -> Iterator[Rig]:
    """Return the module's rig; after each test, check that every session is closed and the gateway lives."""
    module_rig.set_script("Hello world")
    yield module_rig
    assert module_rig.all_closed()
    assert module_rig.gateway.poll() is None


@pytest.fixture
def client(rig: Rig) -> Iterator[openai.OpenAI]:
    """Return the official client, without retries."""
    with openai.OpenAI(base_url=f"{rig.url}/v1", api_key="unused", max_retries=0, timeout=WITHIN_S) as client:
        yield client
