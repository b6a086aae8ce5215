"""The message bus: messages, wire, hub, client, actor loop and the data plane between engines."""
