"""Values that a test knows by their form alone."""

import re


class Pattern:
    """Equal to every text that has the form."""

    def __init__(self, form: str) -> None:
        self._form = re.compile(form)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self._form.fullmatch(other) is not None

    def __hash__(self) -> int:
        return hash(self._form)

    def __repr__(self) -> str:
        return self._form.pattern


# The id of a call that the cloner has not named: made anew for each answer.
UNKNOWN_CALL = Pattern("call_[0-9a-f]{24}")
