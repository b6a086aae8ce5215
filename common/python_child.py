"""How exobus starts Python: a child imports our packages and installed ones, and never what lies in the current folder.

`python -m NAME` puts the current folder first on the path, and the names of our packages are common ones: a `models.py`
there would be run in place of ours.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from common.privacy import TELEMETRY_OFF

PACKAGE_ROOT = Path(__file__).resolve().parent.parent


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module with this interpreter. Give the child `child_environment()` as well."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a child: `base`, or this process's own, with safe imports and no telemetry.

    The child finds the same packages as its parent, also in a checkout that is not installed. An empty entry in
    PYTHONPATH would mean the current folder, so it is dropped.
    """
    environment = dict(os.environ if base is None else base)
    path = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    root = str(PACKAGE_ROOT)
    if root not in path and root not in _site_folders():
        path.insert(0, root)
    environment |= {**TELEMETRY_OFF, "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)}
    return environment


def _site_folders() -> set[str]:
    """Return the folders where Python finds installed packages by itself; on PYTHONPATH they would hide its own."""
    found = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()}
    return {str(Path(folder).resolve()) for folder in found}
