from collections.abc import Callable

import pytest

from tests.cloner.conftest import cloning
from tests.conftest import LEFT_OUT

__all__ = ["cloning"]


@pytest.fixture
def database(tmp_path) -> str:
    """SQLite alone: nothing here is about databases."""
    return f"sqlite:///{tmp_path}/precall.sqlite3"


@pytest.fixture
def left_out(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Says at the end of the tests what was not tried, for want of a tool on this machine."""
    return lambda what: record_property(LEFT_OUT, what)
