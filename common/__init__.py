"""What has no subject of its own: limits, rate limits, text safety, settings."""
