"""Callers' voices: how they are found, made, kept and removed."""
