"""`python -m tests.fuzz TARGET [libFuzzer's options]`: fuzz one decoder with atheris, guided by coverage.

It begins with the target's seeds, which it writes to the last argument if that is a folder. Without a target it
prints the names of all.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("atheris is not installed; it comes with the tools for tests on Linux, x86-64, Python 3.11 to 3.13")

with atheris.instrument_imports(include=["bus", "cluster", "cli.bus.sub"]):
    from tests.fuzz.targets import TARGETS


def main(arguments: list[str]) -> None:
    """Run until libFuzzer's options end it; the process ends with libFuzzer's status, 0 if nothing was found.

    Raises KeyError for an unknown target.
    """
    if not arguments:
        sys.stdout.write("\n".join(TARGETS) + "\n")
        return
    name, *options = arguments
    target = TARGETS[name]
    if options and (corpus := Path(options[-1])).is_dir():
        for seed in target.seeds:
            (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    atheris.Setup([name, *options], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
