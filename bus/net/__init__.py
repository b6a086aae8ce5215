"""Sockets: the factory that makes all of them, endpoints, CURVE keys and their authentication."""
