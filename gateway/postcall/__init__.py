"""`POST /webhook/post-call`: events after a call."""
