"""The core of the gateway knows no HTTP and no API family, HTTP knows no family, and families not each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_layers import ROOT, imports_of

GATEWAY = ROOT / "gateway"
MAY_IMPORT = {"core": {"core"}, "http": {"core", "http"}}  # a family may import both, and itself
FILES = sorted(GATEWAY.glob("*/*.py"))


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(GATEWAY)) for file in FILES])
def test_core_http_and_families_import_one_way(file: Path) -> None:
    folder = file.parent.name
    names = imports_of(file)
    ours = {name.split(".")[1] for name in names if name.startswith("gateway.")}
    assert ours <= MAY_IMPORT.get(folder, {"core", "http", folder})
    if folder == "core":
        assert not {name.partition(".")[0] for name in names} & {"h11", "starlette", "uvicorn"}
