"""The tokenizers of models: from `tokenizer.json`, or made from the vocabulary of a GGUF file."""
