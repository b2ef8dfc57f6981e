"""The gRPC boundary: who may call, what a request says, and how an outcome is answered."""
