"""One file per module, rigs shared by several, whole nodes in `cluster/`, benchmarks in `bench/`."""
