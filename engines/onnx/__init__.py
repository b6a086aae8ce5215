"""The ONNX Runtime engine: one graph a shard, built from the weights in memory; fast on CPUs."""
