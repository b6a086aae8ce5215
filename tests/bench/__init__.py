"""The numbers of the design, measured on real nodes: `python -m tests.bench`. Nothing here fails for being slow."""
