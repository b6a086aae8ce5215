"""GGUF files: their headers, parts, blocks and tensors, read as weights and written."""
