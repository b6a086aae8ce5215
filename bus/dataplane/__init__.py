"""Between stages and gateways: frames, transport, connections."""
