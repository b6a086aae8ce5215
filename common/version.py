"""The version of exobus that runs here."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def running_version() -> str:
    """Return the installed version, or `0+checkout` if exobus is not installed."""
    try:
        return version("exobus")
    except PackageNotFoundError:
        return "0+checkout"
