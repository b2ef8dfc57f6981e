"""The files of `deploy/observability`."""

import json
from pathlib import Path
from typing import Any

import yaml

__all__ = ["FOLDER", "ROOT", "panels", "read"]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "observability"


def read(name: str) -> Any:
    """One file of the folder."""
    text = (FOLDER / name).read_text()
    return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard."""
    return [one for one in read("grafana/dashboards/precall.json")["panels"] if one["type"] != "row"]
