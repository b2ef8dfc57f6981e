"""What the documents call a span is what it is called."""

import re
from importlib import import_module
from pathlib import Path

from telemetry.parts import SPANS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "docs" / f"{name}.md" for name in ("DEPLOYMENT", "RUNBOOK", "TRACING", "LOGS", "METRICS")]


def test_transactions() -> None:
    """A transaction of the registry that is named is a function of that module."""
    named = {name for path in DOCUMENTS for name in re.findall(r"`registry (\w+\.\w+)`", path.read_text())}

    assert {"calls.begin", "agents.intend"} <= named
    for name in named:
        module, _, function = name.partition(".")
        assert callable(getattr(import_module(f"cloner.registry.{module}"), function, None)), name


def test_parts() -> None:
    """The table of what takes time has every part of a request that has a span."""
    text = (ROOT / "docs" / "DEPLOYMENT.md").read_text()
    listed = set(
        re.findall(r"^\| `([a-z ]+?)(?: \.\.\.)?`", text.partition("\n## Traces\n")[2], re.MULTILINE)
    )

    assert set() == set(SPANS.values()) - listed
