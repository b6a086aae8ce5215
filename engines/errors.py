"""The error of all engines. Imports no array library, so that processes without an engine can name it."""

from __future__ import annotations


class EngineError(Exception):
    """The engine cannot do what was requested. The text is one sentence for a person."""
