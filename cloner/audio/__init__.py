"""Finds out what a recording is, by decoding it in separate processes."""
