"""The message bus: messages, wire format, hub, client, actor loop; below them links between hubs and the data plane."""
