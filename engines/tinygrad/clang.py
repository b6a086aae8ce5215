"""A clang for tinygrad's CPU device on machines that have none: the one inside the ziglang wheel."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_cache_path

from engines.engine import EngineError


def ensure_clang() -> None:
    """Point `CC`, which tinygrad calls, at a clang. Raises EngineError where there is none to be had.

    Call it before tinygrad compiles anything, since tinygrad reads the variable once. A `CC` that is no
    clang (gcc, say) is replaced: tinygrad passes flags that only clang knows.
    """
    if "clang" in Path(os.environ.get("CC", "")).name:
        return
    os.environ["CC"] = shutil.which("clang") or str(_zig_script(_zig()))


def _zig() -> Path:
    spec = find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise EngineError("tinygrad's CPU device wants a clang and there is none: pip install ziglang")
    return Path(spec.origin).with_name("zig")


def _zig_script(zig: Path) -> Path:
    """A program that is clang: tinygrad runs `CC` as one file name, so `zig clang` needs a wrapper."""
    text = f'#!/bin/sh\nexec {shlex.quote(str(zig))} clang "$@"\n'
    script = user_cache_path("exobus") / "zig-clang"
    try:
        if not script.is_file() or script.read_text() != text:
            _write_program(script, text)
    except OSError as error:
        raise EngineError(
            f"{script} cannot be written ({error.strerror}); set CC to a clang, or XDG_CACHE_HOME to another folder"
        ) from error
    return script


def _write_program(path: Path, text: str) -> None:
    """Several engines may do this at once: each renames a whole file of its own into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as part:
        part.write(text)
        part.flush()
        os.fchmod(part.fileno(), 0o700)
        os.fsync(part.fileno())
    Path(part.name).replace(path)
