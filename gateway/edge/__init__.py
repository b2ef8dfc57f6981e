"""What is done with what strangers send, before and after any route."""
