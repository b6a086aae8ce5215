"""Model cards, weights by layer range, tokenizers and download sources."""
