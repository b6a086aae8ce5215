"""Rigs for sockets: links, data planes, relays and what goes over a network."""
