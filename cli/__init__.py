"""The command line: what an operator does to voices by hand, as a client of the cloner's gRPC API."""

UNREACHED = "is CLONER_TARGET right, and is TLS spoken on both sides?"
"""What to look at where no cloner is reached."""
