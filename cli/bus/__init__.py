"""`exobus bus …`: watch the message bus of a node. Changes nothing."""
