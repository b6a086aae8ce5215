"""Model weights: which tensors a checkpoint has, and readers of safetensors and GGUF files."""
