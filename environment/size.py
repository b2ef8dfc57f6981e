"""Sizes in bytes that settings of several processes are made of."""

__all__ = ["LARGEST_SAMPLE_MEBIBYTES", "MEBIBYTE"]

MEBIBYTE = 1_048_576
# No process can be told to take larger ones.
LARGEST_SAMPLE_MEBIBYTES = 256
