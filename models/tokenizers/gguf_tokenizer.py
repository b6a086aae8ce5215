"""Builds tokenizer.json from a GGUF file's metadata: `python -m models.tokenizers.gguf_tokenizer MODEL.gguf FOLDER`.

A child process builds it, because a vocabulary takes seconds and memory. Beside the tokenizer it is recorded what file
it was made from: a file that takes its place has a tokenizer and a chat template of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from gguf import Keys

from common.files import write_atomic
from common.python_child import child_environment, module_command
from models.errors import ModelError, TokenizerError, TokenizerUnavailable
from models.tokenizers.gguf_vocabulary import build_vocabulary, check_known
from models.tokenizers.tokenizer import GENERATION_FILE, SETTINGS_FILE, TOKENIZER_FILE
from models.weights.gguf.config import eos_token_ids
from models.weights.gguf.header import read_header

BUILDER = 3
"""Raise it with every change after which the same file gives another tokenizer."""

REFUSED = 3
"""The exit status for a file of which no tokenizer can be built."""

_ORIGIN_FILE = ".tokenizer-origin.json"
_SAMPLING = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
_SPECIAL_TOKENS = {"bos_token": Keys.Tokenizer.BOS_ID, "eos_token": Keys.Tokenizer.EOS_ID}


class _Origin(msgspec.Struct, frozen=True):
    """What a tokenizer was made from: the file's path from there, size in bytes and modification time, and by what."""

    path: str
    size: int
    mtime_ns: int
    builder: int = BUILDER


def ensure_tokenizer(weights_path: Path, folder: Path, timeout_s: float = 120.0) -> None:
    """Build the tokenizer files in `folder`, in a child process, unless they were made from this very file.

    Raises TokenizerError or TokenizerUnavailable.
    """
    if is_built(weights_path, folder):
        return
    origin = _origin_of(weights_path, folder)
    (folder / _ORIGIN_FILE).unlink(missing_ok=True)
    _build_in_child(weights_path, folder, timeout_s)
    write_atomic(folder / _ORIGIN_FILE, msgspec.json.encode(origin))


def check_tokenizer(weights_path: Path) -> None:
    """Raise TokenizerError, or WeightsError, if a file's vocabulary is of a kind that is not known. Builds nothing."""
    check_known(read_header(weights_path, skipped="tokenizer.").metadata, weights_path)


def is_built(weights_path: Path, folder: Path) -> bool:
    """Return whether the tokenizer files in `folder` were made from this very file. Raises TokenizerError."""
    return (folder / TOKENIZER_FILE).is_file() and _recorded_origin(folder) == _origin_of(weights_path, folder)


def _origin_of(weights_path: Path, folder: Path) -> _Origin:
    """Describe the file as it is now. Raises TokenizerError if it cannot be read."""
    try:
        status = weights_path.stat()
    except OSError as error:
        raise TokenizerError(f"{weights_path} cannot be read ({error.strerror}); fetch the model again") from error
    return _Origin(os.path.relpath(weights_path, folder), status.st_size, status.st_mtime_ns)


def _recorded_origin(folder: Path) -> _Origin | None:
    """Read what the tokenizer in `folder` was made from; None if that is not known."""
    try:
        return msgspec.json.decode((folder / _ORIGIN_FILE).read_bytes(), type=_Origin)
    except (OSError, msgspec.DecodeError):
        return None


def _build_in_child(weights_path: Path, folder: Path, timeout_s: float) -> None:
    command = module_command("models.tokenizers.gguf_tokenizer", str(weights_path.absolute()), str(folder.absolute()))
    try:
        child = subprocess.run(
            command,
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise TokenizerUnavailable(
            f"the tokenizer of {weights_path.name} was not built in {timeout_s:.0f} s; "
            "try again when the machine is idle"
        ) from error
    if child.returncode != 0:
        said = child.stderr.strip().rpartition("\n")[2]
        refusal = TokenizerError if child.returncode == REFUSED else TokenizerUnavailable
        raise refusal(said or f"building the tokenizer of {weights_path.name} ended with {child.returncode}; try again")


def build_tokenizer(weights_path: Path, folder: Path) -> None:
    """Write the tokenizer files. tokenizer.json comes last, so that the others exist if it does."""
    metadata = read_header(weights_path).metadata
    text = build_vocabulary(metadata, weights_path).to_str()
    write_atomic(folder / SETTINGS_FILE, json.dumps(_settings(metadata)))
    write_atomic(folder / GENERATION_FILE, json.dumps(_generation(metadata)))
    write_atomic(folder / TOKENIZER_FILE, text)


def _settings(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Make what a repository has in `tokenizer_config.json`: the special tokens and the chat template."""
    tokens = metadata[Keys.Tokenizer.LIST]
    ids = {name: metadata.get(key) for name, key in _SPECIAL_TOKENS.items()}
    special = {name: tokens[token] for name, token in ids.items() if isinstance(token, int) and token < len(tokens)}
    return {**special, "chat_template": metadata.get(Keys.Tokenizer.CHAT_TEMPLATE)}


def _generation(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Make what a repository has in `generation_config.json`: the ids that end an answer, and how to sample.

    A file has float32 numbers: 0.9500000238 was 0.95 before.
    """
    given = {name: metadata[key] for name, key in _SAMPLING.items() if key in metadata}
    sampling = {name: round(value, 6) if isinstance(value, float) else value for name, value in given.items()}
    return {"eos_token_id": eos_token_ids(metadata), **sampling}


def main() -> int:
    """Build the tokenizer. Returns the exit status: 0, or another with one sentence as the last line of stderr."""
    try:
        build_tokenizer(Path(sys.argv[1]), Path(sys.argv[2]))
    except (ModelError, OSError) as error:
        print(error, file=sys.stderr)
        return REFUSED if isinstance(error, ModelError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
