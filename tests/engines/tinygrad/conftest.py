"""A compiler for tests that use tinygrad in their own process."""

from __future__ import annotations

import pytest

from engines.tinygrad.clang import ensure_clang


@pytest.fixture
def clang() -> None:
    ensure_clang()
