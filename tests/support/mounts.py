"""File systems that cannot be written or have no room, for one command: mounts in a namespace of its own.

They hold for root too, which file modes do not stop.
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

IN_A_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]


def _has_namespaces() -> bool:
    try:
        return (
            subprocess.run([*IN_A_NAMESPACE, "mount -t tmpfs none /tmp"], capture_output=True, timeout=10).returncode
            == 0
        )
    except OSError:
        return False


needs_mounts = pytest.mark.skipif(not _has_namespaces(), reason="this system lets no user mount in a namespace")


def read_only(folder: Path, *command: str) -> list[str]:
    """Return the command in a namespace where nothing can be written in `folder`."""
    where = shlex.quote(str(folder))
    return _mounted(f"mount --bind {where} {where}; mount -o remount,ro,bind {where}", command)


def full(folder: Path, *command: str) -> list[str]:
    """Return the command in a namespace where `folder` is an empty disk without room."""
    where = shlex.quote(str(folder))
    fill = f"head -c 1M /dev/zero > {where}/filling 2> /dev/null || true"
    return _mounted(f"mount -t tmpfs -o size=64k,mode=700 none {where}; {fill}", command)


def _mounted(mounting: str, command: tuple[str, ...]) -> list[str]:
    return [*IN_A_NAMESPACE, f"{mounting}; exec {shlex.join(command)}"]
