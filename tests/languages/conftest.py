import pytest

from tests.cloner.conftest import cloning

__all__ = ["cloning"]


@pytest.fixture
def database(tmp_path) -> str:
    """SQLite alone: nothing here is about databases."""
    return f"sqlite:///{tmp_path}/precall.sqlite3"
