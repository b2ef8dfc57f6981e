"""What the API key may do, as the provider names it."""

from collections.abc import Iterable, Iterator

from emulator.errors import refused

NAMES = (
    "create_instant_voice_clone",
    "voices_read",
    "voices_write",
    "convai_read",
    "convai_write",
    "user_read",
)


class Permissions:
    """The permissions of the key: all of them, until some are taken away."""

    def __init__(self) -> None:
        """Start with a key that may do everything."""
        self._held = frozenset(NAMES)

    def __iter__(self) -> Iterator[str]:
        """Those that the key has, in the provider's order."""
        return (name for name in NAMES if name in self._held)

    def set(self, names: Iterable[str]) -> None:
        """Give the key these and no others; `ValueError` for a name that the provider does not have."""
        held = frozenset(names)
        if unknown := held - frozenset(NAMES):
            raise ValueError(f"no such permission: {', '.join(sorted(unknown))}")
        self._held = held

    def take(self, *names: str) -> None:
        """Take these away."""
        self.set(self._held - frozenset(names))

    def require(self, name: str) -> None:
        """Refuse in the provider's words if the key lacks it."""
        if name not in self._held:
            raise refused(
                "missing_permissions",
                f"The API key you used is missing the permission {name} to execute this operation.",
            )
