"""The documents lead where they say."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for folder in (".", "docs", "tests/samples")
    for path in (ROOT / folder).glob("*.md")
)


def prose(document: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """What a link into a document may name: its headings, as GitHub spells them in an address."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(document: Path) -> list[str]:
    """The targets of all links that stay inside the project."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(document))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links(document: Path) -> None:
    """Every link inside the project names a file or a folder that is there, and a heading of it."""
    for target in links(document):
        name, _, anchor = target.partition("#")
        found = ROOT / document.parent / name if name else ROOT / document

        assert found.exists(), target
        assert found.resolve().is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(found.resolve().relative_to(ROOT)), target


def test_all_are_found() -> None:
    """README.md leads to every document in docs/, and to those at the top."""
    led = {target.partition("#")[0] for target in links(Path("README.md"))}

    assert {str(path) for path in DOCUMENTS if path.parts[0] != "tests"} - {"README.md"} <= led


def test_checker() -> None:
    """What is checked is what there is: several links, some of which name a heading."""
    every = [target for document in DOCUMENTS for target in links(document)]

    assert len(every) > 20
    assert [target for target in every if "#" in target]
    assert {"a-good-sample", "who-is-calling"} <= anchors(Path("docs/VOICE_CLONING.md"))


def test_paths_of_code() -> None:
    """Every file and folder of the code that CONTRIBUTING.md names is there."""
    named = re.findall(r"`(\w+/(?:[\w/]+\.py|[\w/]*))`", (ROOT / "CONTRIBUTING.md").read_text())

    assert len(named) > 10
    assert [] == [path for path in named if not (ROOT / path).exists()]
