"""What a generation waits for until its first token, in numbers. An API family puts it into words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preparing:
    """The request was parsed, and nothing has been looked up yet."""


@dataclass(frozen=True, slots=True)
class LoadingTokenizer:
    """The model's tokenizer and template are fetched and loaded."""

    model_id: str


@dataclass(frozen=True, slots=True)
class LoadingModel:
    """No instance of the model is known to stand; its placer makes one."""

    model_id: str


@dataclass(frozen=True, slots=True)
class Downloading:
    """Files of the model arrive on some node."""

    model_id: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Reported:
    """Another actor published a `status` fact about the model."""

    text: str


@dataclass(frozen=True, slots=True)
class Queued:
    """The first stage's queue has `ahead` generations before this one."""

    ahead: int


@dataclass(frozen=True, slots=True)
class ReadingPrompt:
    """The prompt is being computed."""

    tokens: int


Progress = Preparing | LoadingTokenizer | LoadingModel | Downloading | Reported | Queued | ReadingPrompt
