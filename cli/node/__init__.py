"""`exobus node`: options, settings, the running node and its screen."""
