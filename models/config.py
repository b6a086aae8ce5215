"""Reads `config.json` and the other small JSON files of a model folder. Reads no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.errors import WeightsError
from models.settings import Settings

_MAX_JSON_BYTES = 64 << 20


def parse_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object that somebody else wrote. Raises ValueError, also if it is nested too deeply."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a small file of a model folder. Raises WeightsError."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise WeightsError(f"{path} is far too large for a configuration file; fetch the model again")
        return parse_object(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); fetch the model again") from error
    except ValueError as error:
        raise WeightsError(f"{path} does not hold a JSON object; delete it and fetch the model again") from error


def folder_settings(folder: Path) -> Settings:
    """Read `config.json`. Raises WeightsError."""
    path = folder / "config.json"
    if not path.is_file():
        hint = "a folder that holds a whole model" if not any(folder.glob("*.gguf")) else "the .gguf file in it"
        raise WeightsError(f"{folder} has no config.json; point to {hint}")
    return Settings(read_json(path), str(path))
