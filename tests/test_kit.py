"""Where what tests share is."""

import re
from pathlib import Path

IMPORTED = re.compile(r"^\s*(?:from|import) tests\b.*\btest_\w+", re.MULTILINE)


def test_no_test_module_is_imported() -> None:
    """What several test modules use stands in `tests/kit/`, or in a module of their folder."""
    modules = [*Path(__file__).parent.rglob("*.py")]

    assert {} == {
        str(module): found for module in modules if (found := IMPORTED.findall(module.read_text("utf-8")))
    }
    assert len(modules) > 100
