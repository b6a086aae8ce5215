"""The ONNX Runtime engine: one graph for a shard, built from the weights in memory. Fast on CPUs."""
