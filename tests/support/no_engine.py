"""Stands in for `actors.device_probe` on a machine where no engine works."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.exit("no engine works on this machine (numpy: it is not installed)")
