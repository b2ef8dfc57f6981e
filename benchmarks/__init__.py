"""What deliveries cost on this machine."""
