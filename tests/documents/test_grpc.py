"""What docs/GRPC.md says of the contract is what the contract and the cloner say."""

import json
import re
from pathlib import Path

from precall.v1 import cloning_pb2 as pb

from cloner.rpc.access import OF_METHODS

ROOT = Path(__file__).parents[2]
METHODS = {method.name for method in pb.DESCRIPTOR.services_by_name["CloningService"].methods}


def test_rights() -> None:
    """The table of rights, and the comment of the contract, name every method once, with its right."""
    text = (ROOT / "docs" / "GRPC.md").read_text().partition("| right | methods |\n")[2].partition("\n\n")[0]
    table = {
        method: right
        for right, methods in re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.MULTILINE)
        for method in methods.split(", ")
    }
    comment = (ROOT / "proto/precall/v1/cloning.proto").read_text().partition("which has rights: ")[2]
    comment = comment.partition("Where the right is missing")[0].replace("\n// ", " ")
    stated = {
        method: right
        for right, methods in re.findall(r"`(\w+)` for ([^`]+)", comment)
        for method in re.findall(r"[A-Z]\w+", methods)
    }

    assert METHODS == set(table)
    assert OF_METHODS == table
    assert {method: right for method, right in OF_METHODS.items() if right != "read"} == stated


def test_service_config() -> None:
    """The published service config repeats every method, but for the one that makes something new each time."""
    config = json.loads((ROOT / "client/precall_client/service_config.json").read_text())

    named = [name["method"] for policy in config["methodConfig"] for name in policy["name"]]
    assert sorted(METHODS - {"ReplaceVoice"}) == sorted(named)
