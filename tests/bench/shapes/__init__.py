"""Speed on the shapes of models that users have, each engine beside llama.cpp."""
