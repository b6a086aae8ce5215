"""A clang for tinygrad's CPU device. On machines without one it is the clang inside the ziglang wheel."""

from __future__ import annotations

import os
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_cache_path

from common.files import write_atomic
from engines.errors import EngineError


def ensure_clang() -> None:
    """Set `CC`, the compiler that tinygrad runs, to a clang. Raises EngineError if there is none.

    Call this before tinygrad compiles anything, since it reads the variable only once. A `CC` that is not a clang is
    replaced: tinygrad passes flags that only clang supports.
    """
    if "clang" in Path(os.environ.get("CC", "")).name:
        return
    os.environ["CC"] = shutil.which("clang") or str(_zig_script())


def _zig_script() -> Path:
    """Write a program that runs `zig clang`, since `CC` must be one file name. Raises EngineError."""
    spec = find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise EngineError("tinygrad's CPU device needs a clang and there is none: pip install ziglang")
    zig = Path(spec.origin).with_name("zig")
    text = f'#!/bin/sh\nexec {shlex.quote(str(zig))} clang "$@"\n'
    script = user_cache_path("exobus") / "zig-clang"
    try:
        if not script.is_file() or script.read_text() != text:
            script.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(script, text, 0o700)  # several engines may do this at once
    except OSError as error:
        raise EngineError(
            f"{script} cannot be written ({error.strerror}); set CC to a clang, or XDG_CACHE_HOME to another folder"
        ) from error
    return script
