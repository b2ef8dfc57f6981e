"""Sizes in bytes that settings of several processes are made of."""

__all__ = ["MEBIBYTE", "message_bytes"]

MEBIBYTE = 1_048_576


def message_bytes(sample_bytes: int) -> int:
    """How large a gRPC request may be: the sample and what surrounds it, and no less than 16 MiB."""
    return max(16 * MEBIBYTE, sample_bytes + MEBIBYTE)
