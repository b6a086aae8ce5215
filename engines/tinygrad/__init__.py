"""The tinygrad engine: whatever device tinygrad drives, with a compiler brought along for the CPU."""
