"""Agents: how they are given a caller's voice, and what they let be overridden."""
