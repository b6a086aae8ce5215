"""Commands that fetch and build peers, each with a deadline and a log. Knows no peer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path("build/peers")


class AbsentError(Exception):
    """A peer that cannot be built or started here. The text is the reason in one sentence."""


def run(command: Sequence[str | Path], log: Path, within_s: float) -> None:
    """Run a command to its end with its output in `log`. Raises AbsentError if it fails or takes too long."""
    log.parent.mkdir(parents=True, exist_ok=True)
    name = Path(command[0]).name
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status = process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AbsentError(f"{name} was not done in {within_s:.0f} s; see {log}") from None
        finally:
            _end_group(process)
    if status:
        raise AbsentError(f"{name} failed: {_last_line(log)}; see {log}")


def venv(name: str, requirements: Sequence[str | Path], within_s: float = 300.0) -> Path:
    """Return the Python of a virtual environment under build/peers with these requirements; make it if missing."""
    folder = ROOT / "venvs" / name
    python, done = folder / "bin" / "python", folder / "installed"
    wanted = "\n".join(map(str, requirements))
    if done.is_file() and done.read_text() == wanted:
        return python.absolute()
    ends = time.monotonic() + within_s
    run([sys.executable, "-m", "venv", folder], ROOT / f"{name}-venv.log", within_s)
    install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *requirements]
    run(install, ROOT / f"{name}-install.log", max(ends - time.monotonic(), 1.0))
    done.write_text(wanted)
    return python.absolute()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
    return lines[-1].strip()[:200]
