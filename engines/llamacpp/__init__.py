"""The llama.cpp engine: an unpatched libllama, by its public C API."""
