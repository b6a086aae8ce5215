"""The settings of a model by their names in a Hugging Face `config.json`, whatever file they are from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.errors import WeightsError

LARGEST_COUNT = (1 << 31) - 1


class Settings:
    """Looks up settings one by one, and checks their types and ranges. One that is null is not given.

    The methods raise WeightsError, which names `where`, the file, and the setting.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def get(self, name: str, default: Any = None) -> Any:
        """Return a setting unchecked."""
        value = self.values.get(name)
        return default if value is None else value

    def count(self, name: str, default: int | None = None, most: int = LARGEST_COUNT) -> int:
        """Return a whole number from 1 to `most`."""
        value = self.get(name, default)
        if type(value) is not int or not 0 < value <= most:
            raise self.unusable(name)
        return value

    def number(self, name: str, default: float | None = None, most: float = 1e12) -> float:
        """Return a number above 0 and at most `most`."""
        value = self.get(name, default)
        if type(value) not in (int, float) or not 0 < value <= most:
            raise self.unusable(name)
        return float(value)

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """Return a list of `length` numbers above 0."""
        value = self.get(name)
        if not isinstance(value, list) or len(value) != length:
            raise self.unusable(name)
        indexed = Settings({str(index): item for index, item in enumerate(value)}, f"{self.where}, {name},")
        return tuple(indexed.number(str(index)) for index in range(length))

    def text(self, name: str, default: str | None = None) -> str:
        """Return a string."""
        value = self.get(name, default)
        if not isinstance(value, str):
            raise self.unusable(name)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.unusable(name)
        return value

    def group(self, name: str) -> Settings:
        """Return the settings in a setting; none, if it is not given."""
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise self.unusable(name)
        return Settings(value, self.where)

    def replaced(self, **values: Any) -> Settings:
        """Return these settings with some replaced."""
        return Settings({**self.values, **values}, self.where)

    def unusable(self, name: str) -> WeightsError:
        """Make the error for a setting that is missing, of a wrong type or out of range."""
        if self.values.get(name) is None:
            return WeightsError(f"{self.where} does not say its {name}; pick another model")
        return WeightsError(f"{self.where} gives {name} as {repr(self.values.get(name))[:80]}; pick another model")

    def unsupported(self, what: str) -> WeightsError:
        """Make the error for something that the file asks for in so many words and exobus does not have."""
        return WeightsError(f"{self.where} {what}; pick another model")
