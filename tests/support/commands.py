"""The `exobus` command as a process that runs to its end."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.support.gateway.gateway_rig import ROOT
from tests.support.nodes import clean_environment

WITHIN_S = 60


def exobus(*arguments: str, data: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command with `data` on its standard input, without the EXOBUS variables of this process."""
    return subprocess.run(
        command(arguments),
        cwd=ROOT,
        input=data,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        env={**clean_environment(), "NO_COLOR": "1", "COLUMNS": "200", **environment},
    )


def cluster(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `exobus cluster` to its end; it finds no other node than that in `data_dir`."""
    return exobus("cluster", *arguments, EXOBUS_DATA_DIR=str(data_dir))


def printed(data_dir: Path, *arguments: str) -> str:
    """Return the output and the messages of a command that succeeds."""
    done = cluster(data_dir, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def refused(data_dir: Path, *arguments: str) -> str:
    """Return the one sentence with which the command fails, having printed nothing."""
    done = cluster(data_dir, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def exobus_on_terminal(*arguments: str, **environment: str) -> str:
    """Run the command with its output on a terminal of 80 columns; return what the terminal was sent."""
    main, sub = pty.openpty()
    process = subprocess.Popen(
        command(arguments),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=sub,
        stderr=sub,
        env={**clean_environment(), "COLUMNS": "80", **environment},
    )
    os.close(sub)
    sent = b""
    with suppress(OSError):  # Linux reports the end of a terminal's output as an error
        while data := os.read(main, 1 << 16):
            sent += data
    os.close(main)
    process.wait(WITHIN_S)
    return sent.decode()


def command(arguments: Sequence[str]) -> list[str]:
    """Return the command line."""
    return [sys.executable, "-m", "cli", *arguments]
