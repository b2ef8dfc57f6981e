"""What `docs/LOGS.md` lists is what the code can write."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from telemetry.facts import KEYS
from tests.kit.lines import EVERYWHERE, Line, table

ROOT = Path(__file__).parents[2]
# Which process the code of a folder runs in.
FOLDERS = {
    "gateway": "gateway", "client/precall_client": "gateway", "cloner": "cloner",
    "telemetry": "both", "environment": "both",
}  # fmt: skip
LEVELS = {"info", "warning", "error"}


def calls() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module, ast.Call]]:
    """Each call in our code, with the process it is of and the function that it stands in."""
    for folder, process in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text())
            inner: dict[ast.Call, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module] = {}
            for scope in ast.walk(tree):
                if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
                    inner |= {node: scope for node in ast.walk(scope) if isinstance(node, ast.Call)}
            for call, scope in inner.items():
                yield process, scope, call


def text(node: ast.expr) -> str | None:
    """The text of a literal."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def levels_named(scope: ast.AST) -> set[str]:
    """The levels that are named within a function."""
    named = {node.attr for node in ast.walk(scope) if isinstance(node, ast.Attribute)}
    return {level for level in LEVELS if level.upper() in named}


@cache
def written() -> dict[str, Line]:
    """What each event can be, as the calls in the code have it."""
    levels, by, keys = (
        defaultdict[str, set[str]](set),
        defaultdict[str, set[str]](set),
        defaultdict[str, set[str]](set),
    )
    for process, scope, call in calls():
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        arguments = [text(argument) for argument in call.args]
        named = {argument.arg for argument in call.keywords if argument.arg is not None}
        if name in LEVELS and arguments[:1] != [None] and arguments:
            event, said = arguments[0], {name}
        elif name == "log" and len(arguments) == 2 and arguments[1]:
            event, said = arguments[1], levels_named(scope)
        elif name == "log_postponed":
            event, said = arguments[0], {"warning", *(["error"] if "urgent" in named else [])}
            named = {"tries", "next_try_seconds"} & named
        elif name == "Remark":
            event, said = arguments[0], {"error" if "is_severe" in named else "warning"}
            named = {"variable"}
        else:
            continue
        assert event, ast.unparse(call)
        event = event.replace("%s", "...")
        levels[event] |= said
        by[event].add(process)
        keys[event] |= {KEYS.get(key, key) for key in named}
    return {
        event: Line(
            frozenset(levels[event]),
            by[event].pop() if len(by[event]) == 1 else "both",
            frozenset(keys[event]),
        )
        for event in levels
    }


def test_every_event_is_listed() -> None:
    """The table and the code name the same events, with the same levels, of the same processes."""
    listed, found = table(), written()

    assert len(found) > 60
    assert {(event, line.levels, line.by) for event, line in found.items()} == {
        (event, line.levels, line.by) for event, line in listed.items()
    }


def test_every_key_is_listed() -> None:
    """What a line says of its own stands beside it, or among what every line may say."""
    listed = table()

    assert {} == {
        event: unknown
        for event, line in written().items()
        if (unknown := line.keys - listed[event].keys - EVERYWHERE)
    }


def test_one_word_for_one_thing() -> None:
    """No two words of the code stand for the same key, and every key that is listed is one of the code's."""
    assert len(KEYS) == len(set(KEYS.values()))
    told = set(
        re.findall(
            r"`((?:gen_ai|precall|http|rpc|client|url)\.[a-z_.]+)`", (ROOT / "docs/LOGS.md").read_text()
        )
    )
    assert set() == told - set(KEYS.values())
