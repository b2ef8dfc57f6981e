"""Clients of a cloner: who they are, what they may do, and a channel for what is larger than any of theirs."""

import hashlib

import grpc

__all__ = ["ALL", "bearer", "channel", "entry", "with_token"]

ALL = ("calls", "voices", "read", "erase")
"""Every right that there is."""


def entry(name: str, *tokens: str, may: tuple[str, ...] = ALL, most: int | None = None) -> str:
    """A client, as TOML."""
    hashes = [hashlib.sha256(token.encode()).hexdigest() for token in tokens]
    bound = "" if most is None else f"max_requests = {most}\n"
    return f"[clients.{name}]\ntoken_sha256 = {hashes}\nmay = {list(may)}\n{bound}"


def bearer(text: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call that carries that."""
    return (("authorization", text),)


def with_token(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata of whoever has it."""
    return bearer(f"Bearer {token}")


def channel(port: int) -> grpc.aio.Channel:
    """A channel to a server on this machine that sends messages of any size."""
    return grpc.aio.insecure_channel(
        f"127.0.0.1:{port}",
        options=(("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 100_000)),
    )
