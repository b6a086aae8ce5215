"""`python -m cli`: the same as `exobus`."""

from cli.main import app

app(prog_name="exobus")
