"""Builds tokenizer.json from a GGUF file's metadata, once: `python -m models.gguf_tokenizer`.

The builders are those of transformers, which is slow to import, so a child process runs them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.python_child import child_environment, module_command
from models.errors import ModelError, TokenizerError
from models.files import write_whole
from models.gguf_header import read_header
from models.gguf_weights import eos_token_ids
from models.tokenizer import GENERATION_FILE, SETTINGS_FILE, TOKENIZER_FILE

_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def ensure_tokenizer(weights_path: Path, folder: Path, deadline_s: float = 120.0) -> None:
    """Have the tokenizer files in `folder`; a child process builds those that are missing. TokenizerError."""
    if (folder / TOKENIZER_FILE).is_file():
        return
    command = module_command("models.gguf_tokenizer", str(weights_path.absolute()), str(folder.absolute()))
    try:
        child = subprocess.run(
            command,
            env=child_environment() | _QUIET,
            capture_output=True,
            text=True,
            timeout=deadline_s,
        )
    except subprocess.TimeoutExpired as error:
        raise TokenizerError(
            f"the tokenizer of {weights_path.name} was not built in {deadline_s:.0f} s; "
            "try again when the machine is idle"
        ) from error
    if child.returncode != 0:
        raise TokenizerError(
            child.stderr.strip().rpartition("\n")[2] or f"building a tokenizer ended with {child.returncode}"
        )


def build_tokenizer(weights_path: Path, folder: Path) -> None:
    """Write the tokenizer files; tokenizer.json comes last, so that where it is, the others are too."""
    metadata = read_header(weights_path).metadata
    text = _tokenizer_json(weights_path, metadata)
    write_whole(folder / SETTINGS_FILE, json.dumps(_settings(metadata)).encode())
    write_whole(folder / GENERATION_FILE, json.dumps({"eos_token_id": eos_token_ids(metadata)}).encode())
    write_whole(folder / TOKENIZER_FILE, text.encode())


def _tokenizer_json(weights_path: Path, metadata: Mapping[str, Any]) -> str:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        GGUF_TOKENIZER_MAPPING,
        convert_gguf_tokenizer,
    )

    renames = GGUF_TOKENIZER_MAPPING["tokenizer"]
    fields = {name: metadata[f"tokenizer.{key}"] for key, name in renames.items() if f"tokenizer.{key}" in metadata}
    try:
        backend, _ = convert_gguf_tokenizer(metadata["general.architecture"], fields)
    except (KeyError, ValueError) as error:
        raise TokenizerError(
            f"{weights_path} holds no tokenizer that exobus knows ({error}); use another model"
        ) from error
    return str(backend.to_str())


def _settings(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the `tokenizer_config.json` of a repository would say: special tokens and the chat template."""
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_id") for name in ("bos_token", "eos_token")}
    special = {name: tokens[token] for name, token in ids.items() if isinstance(token, int) and token < len(tokens)}
    return {**special, "chat_template": metadata.get("tokenizer.chat_template")}


def main() -> int:
    """MODEL.gguf FOLDER: exit status 0, or 1 with one sentence as the last line of stderr."""
    try:
        build_tokenizer(Path(sys.argv[1]), Path(sys.argv[2]))
    except (ModelError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
