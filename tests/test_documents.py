"""The documents name files that exist."""

from __future__ import annotations

import re

import pytest

from tests.test_layers import MAY_IMPORT, ROOT

DOCUMENTS = ("README.md", "SECURITY.md", "docs/design.md", "docs/operations.md", "docs/performance.md")
ROOTS = {*MAY_IMPORT, "docs", "tests"}
"""Files that are written at this moment. Empty once they are there."""

_PATH = re.compile(r"`([a-z_]+/[A-Za-z_0-9/.]*)`")
_LINK = re.compile(r"\]\(([^)#]+)\)")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_files_exist(name: str) -> None:
    document = ROOT / name
    text = document.read_text()
    named = {path for path in _PATH.findall(text) if path.partition("/")[0] in ROOTS}
    linked = {target for target in _LINK.findall(text) if not target.startswith("https:")}
    paths = {ROOT / path for path in named} | {document.parent / target for target in linked}
    assert paths
    assert [str(path) for path in sorted(paths) if not path.exists()] == []
