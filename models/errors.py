"""What can go wrong with a model. The text of each error is one sentence for the user, with the next step."""

from __future__ import annotations


class ModelError(Exception):
    """The base of all errors of models."""


class CatalogueError(ModelError):
    """A model card that cannot be read."""


class WrongCard(ModelError):
    """A model card that says something else than the model's own files."""


class BadName(ModelError):
    """A text that names no model, whatever models there are."""


class UnknownModel(ModelError):
    """A name that no card has as id or alias. `near` are the closest ids, best first."""

    def __init__(self, model_id: str, near: tuple[str, ...]) -> None:
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        super().__init__(f"there is no model {model_id!r} in the catalogue; {hint}`exobus models ls` lists them all")
        self.model_id = model_id
        self.near = near


class WeightsError(ModelError):
    """A weights file or a configuration that is missing, damaged or of an unsupported kind."""


class TokenizerError(ModelError):
    """A tokenizer that cannot be loaded or built, now or later."""


class TokenizerUnavailable(ModelError):
    """A tokenizer that could not be built, for a reason unrelated to it; a retry may succeed."""


class TemplateError(ModelError):
    """A chat template that does not compile or refuses the messages."""


class TemplateUnavailable(ModelError):
    """A chat template that cannot be rendered right now, for a reason unrelated to it; a retry may succeed."""


class DownloadError(ModelError):
    """A model that could not be fetched. No partial file is left under a final name."""


class NotOnHub(DownloadError):
    """A repository, revision, quantization or file that the hub does not have, or not for this user."""


class DownloadCancelled(DownloadError):
    """A fetch that was stopped on request."""
