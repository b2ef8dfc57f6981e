"""The command line: what an operator does to voices by hand, as a client of the cloner's gRPC API."""

UNREACHED = "is CLONER_TARGET right, is TLS spoken on both sides, and what does python -m cloner.health say?"
"""What to look at where no cloner is reached."""
