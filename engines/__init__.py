"""Inference engines: the arithmetic of one shard, in token ids and arrays."""
