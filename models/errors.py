"""What can go wrong with a model, each in one sentence for the user. Knows no files and no network."""

from __future__ import annotations


class ModelError(Exception):
    """The root: its text is one sentence that says what is wrong and what to do next."""


class CatalogueError(ModelError):
    """A model card that cannot be read."""


class UnknownModel(ModelError):
    """No card has this id or alias; `near` are the closest names, best first."""

    def __init__(self, model_id: str, near: tuple[str, ...]) -> None:
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        super().__init__(f"there is no model {model_id!r} in the catalogue; {hint}`exobus models ls` lists them all")
        self.model_id = model_id
        self.near = near


class WeightsError(ModelError):
    """A weights file or a configuration that is missing, damaged or of an unsupported kind."""


class TokenizerError(ModelError):
    """A tokenizer that cannot be loaded or built."""


class TemplateError(ModelError):
    """A chat template that does not compile or refuses the messages."""


class TemplateUnavailable(ModelError):
    """A chat template that cannot be rendered just now, through no fault of its own."""


class DownloadError(ModelError):
    """A model that could not be fetched; nothing half-written is left under a final name."""


class DownloadCancelled(DownloadError):
    """The fetch was given up because its owner asked for it."""
