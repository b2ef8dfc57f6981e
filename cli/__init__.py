"""The command line: what an operator does to voices by hand, as a client of the cloner's gRPC API."""
