"""`POST /webhook`: the pre-call event, which carries a sample."""
