"""The folders of the source tree, rigs in `support/`, whole nodes in `nodes/`, benchmarks in `bench/`."""
