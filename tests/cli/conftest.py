import pytest

from tests.cloner.conftest import cloning, completed

__all__ = ["cloning", "completed"]


@pytest.fixture
def database(sqlite: str) -> str:
    """SQLite alone: what differs between databases is tried by cloner/test_lifecycle.py, crash/ and property/."""
    return sqlite
