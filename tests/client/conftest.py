import pytest

from tests.cloner.conftest import cloning

__all__ = ["cloning"]


@pytest.fixture
def database(sqlite: str) -> str:
    """SQLite alone: nothing here is about databases."""
    return sqlite
