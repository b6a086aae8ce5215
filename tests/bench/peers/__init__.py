"""exobus beside other engines and servers on the same machine: what `make bench-peers` runs, and its figures."""
