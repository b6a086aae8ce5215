"""The only sockets: factory, endpoints, CURVE keys, ZAP."""
