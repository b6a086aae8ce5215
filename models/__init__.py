"""Model cards, weights, tokenizers, chat templates and the sources that models are fetched from."""
