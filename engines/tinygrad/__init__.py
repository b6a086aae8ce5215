"""The tinygrad engine: every device that tinygrad supports, with a compiler for the CPU included."""
