"""The errors of all engines. Imports no array library, so that processes without an engine can name them."""

from __future__ import annotations


class EngineError(Exception):
    """The engine cannot do what was requested. The text is one sentence for a person."""


class NotInParts(EngineError):
    """The engine cannot run this part of the model, but may run it whole."""
