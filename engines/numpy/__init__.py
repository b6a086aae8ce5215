"""The reference engine: float32 on the CPU, with numpy only."""
