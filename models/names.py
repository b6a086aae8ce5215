"""What a user types for a model: a name of the catalogue, a repository of the hub, or a path. Looks nothing up."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from models.card import MODEL_ID, REPO_NAME, REVISION
from models.errors import BadName
from models.quantizations import quant_of

AUTO = "auto"
QUANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
MAX_LENGTH = 256
_HUB = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://", re.IGNORECASE)
_PAGE = re.compile(r"([^/]+/[^/]+)/(?:tree|blob|resolve|raw)/([^/]+)(?:/(.+))?")
"""What the address of a page of the hub has after the hub: repository, revision and, of a folder or file, its path."""

_OLLAMA = re.compile(r"(?:https?://)?(?:www\.|registry\.)?ollama\.(?:com|ai)/(?:library/)?", re.IGNORECASE)
_PATH = re.compile(r"[.]{0,2}/|~|[.]{1,2}\Z|[A-Za-z]:\\", re.ASCII)


class CatalogueName(msgspec.Struct, frozen=True):
    """An id or alias of the catalogue."""

    name: str


class HubName(msgspec.Struct, frozen=True):
    """A repository of the hub, perhaps at a revision, and perhaps one quantization of its GGUF files or `auto`."""

    repo: str
    revision: str = ""
    quant: str = ""

    def __str__(self) -> str:
        revision, quant = self.revision and f"@{self.revision}", self.quant and f":{self.quant}"
        return f"{self.repo}{revision}{quant}"

    @property
    def model_id(self) -> str:
        """The id of the model's card: lower case, with `--` between the parts, which no repository's name contains.

        A hash follows if letters or length are lost, so that two models never share an id.
        """
        parts = (*self.repo.split("/"), self.revision and f"at-{self.revision}", self.quant)
        plain = "--".join(part for part in parts if part)
        model_id = plain.lower()
        if self.revision != self.revision.lower() or not MODEL_ID.fullmatch(model_id):
            digest = hashlib.sha256(str(self).encode()).hexdigest()[:12]
            model_id = f"{re.sub('[^a-z0-9._-]', '-', model_id)[:80].strip('._-')}--{digest}"
        return model_id


class LocalPath(msgspec.Struct, frozen=True):
    """A folder or a file of this machine."""

    path: Path


ModelName = CatalogueName | HubName | LocalPath


def parse_name(text: str) -> ModelName:
    """Parse what a user typed. Raises BadName with a sentence.

    A path begins with `/`, `./`, `../` or `~`, or ends with `.gguf`; else a slash makes it a repository. The address of
    a page stands for its repository, and if it names a quantization for that one. A name in Ollama's library is taken
    as one of the catalogue.
    """
    text = text.strip()
    if not text or len(text) > MAX_LENGTH or not text.isprintable():
        raise BadName("the name of a model has 1 to 256 printable characters; `exobus models ls` lists models")
    if hub := _HUB.match(text):
        return _hub_page(text, text[hub.end() :])
    ollama = _OLLAMA.match(text)
    rest = text[ollama.end() if ollama else 0 :]
    if ollama and "/" in rest.rstrip("/"):
        raise BadName(f"{text} is a model of Ollama; give ORG/REPO of the hub, or an id of `exobus models ls`")
    if "://" in rest:
        raise BadName(f"{text} is no address of the hub; give ORG/REPO, or the path of a file on this machine")
    if not ollama and (_PATH.match(rest) or rest.lower().endswith(".gguf")):
        return LocalPath(Path(rest).expanduser())
    rest = rest.rstrip("/")
    return _hub_name(rest) if "/" in rest else CatalogueName(rest.lower().removesuffix(":latest"))


def _hub_page(text: str, rest: str) -> HubName:
    """Parse what comes after the hub in the address `text`. Raises BadName."""
    rest = re.split("[?#]", rest)[0].rstrip("/")
    page = _PAGE.fullmatch(rest)
    if page is None:
        return _hub_name(rest)
    repo, revision, path = page[1], "" if page[2] == "main" else page[2], page[3] or ""
    quant = quant_of(path)
    if path.lower().endswith(".gguf") and not quant:
        raise BadName(f"{text} is the address of a file; give {repo}, or {repo}:Q4_K_M for one quantization")
    return _hub_name(repo + (revision and f"@{revision}") + (quant and f":{quant}"))


def _hub_name(text: str) -> HubName:
    """Parse ORG/REPO[@REVISION][:QUANT]. Raises BadName."""
    rest, colon, quant = text.partition(":")
    repo, at, revision = rest.partition("@")
    if repo.count("/") != 1:
        raise BadName(f"{text} has not the form ORG/REPO of a repository; a path begins with ./ or /")
    if not REPO_NAME.fullmatch(repo) or "--" in repo or ".." in repo:
        raise BadName(f"{repo} is not the name of a repository; it has letters, digits, dashes and single dots")
    if at and not REVISION.fullmatch(revision):
        raise BadName(
            f"after the @ of {text} comes a branch, tag or commit without a slash; correct it, or leave @ out"
        )
    if colon and not QUANT.fullmatch(quant):
        raise BadName(f"after the colon of {text} comes a quantization such as Q4_K_M, or auto; correct it")
    return HubName(repo, revision, quant)
