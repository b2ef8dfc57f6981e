"""Which parts of what is said of a caller make one person."""

from callerid.name import folded, spaced

__all__ = ["identify_person"]


def identify_person(number: str | None, name: str, date_of_birth: str) -> tuple[str, str, str]:
    """Equal for two callers exactly when they are the same person.

    `number` is in E.164 form, None for a caller without one. The name counts without regard to case, spaces
    and spelling in code points.
    """
    return number or "", folded(name), spaced(date_of_birth)
