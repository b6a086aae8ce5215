"""`python -m cli`: the same as `exobus`.

Python puts the current folder first on the path of `-m`, and finds this package there or behind it. From here on that
entry is gone, unless it is the folder of the packages themselves, so no other file of the current folder is imported.
The `exobus` script never has that entry; prefer it, or `python -P -m cli`.
"""

import sys

if not sys.flags.safe_path and not __file__.startswith(sys.path[0].rstrip("/") + "/cli/"):
    del sys.path[0]

from cli.main import app

app(prog_name="exobus")
