"""docs/TROUBLESHOOTING.md says of every reason what to do, and knows no other."""

import re
from pathlib import Path

from precall.v1.error_reason_pb2 import ErrorReason

from cloner.settings import Settings as OfCloner
from gateway.settings import Settings as OfGateway

TEXT = (Path(__file__).parents[2] / "docs" / "TROUBLESHOOTING.md").read_text()
REASONS = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118 - no mapping


def test_every_reason() -> None:
    """Each reason of the contract has one row, with a meaning and something to do."""
    rows = [row.split(" | ") for row in re.findall(r"^\| ([A-Z_]+ \| .*) \|$", TEXT, re.MULTILINE)]

    assert sorted(REASONS) == sorted(reason for reason, *_ in rows)
    assert {(3, True)} == {(len(row), all(row)) for row in rows}


def test_settings_exist() -> None:
    """A setting that is named there is one."""
    known = {name.upper() for kind in (OfGateway, OfCloner) for name in kind.__struct_fields__}

    assert set(re.findall(r"`([A-Z_]{6,})(?:=\w+)?`", TEXT)) <= known
