"""Engines: the arithmetic of one shard, in token ids and arrays. No sockets and no text here."""
