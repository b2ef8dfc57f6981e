"""`GET /health` and what stands beside it."""
