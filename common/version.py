"""The version of exobus that runs here."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def running_version() -> str:
    """As it was installed; a checkout that is not installed has none."""
    try:
        return version("exobus")
    except PackageNotFoundError:
        return "0+checkout"
