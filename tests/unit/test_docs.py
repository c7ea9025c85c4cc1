"""The links of the project's pages lead to files and headings that exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """A link to a file names a file that exists; a link to a heading names a heading of that page."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    """A path of the project that a page names is there; paths of worker/ may be written without that folder."""
    named = re.findall(r"`([\w/-]+/[\w/.-]+\.(?:py|sql|md|conf|cfg|yaml|yml|toml|service))`", page.read_text("utf-8"))
    roots = (PROJECT, PROJECT / "worker", PROJECT / "docs")
    assert [path for path in named if not any((root / path).exists() for root in roots)] == []


def texts_of_the_code() -> Iterator[str]:
    """All strings in worker/, those with values in them with a mark in the place of each."""
    for path in (PROJECT / "worker").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)


TABLE = re.compile(r"^ *\| (?:line|it says) \|[^\n]*\n *\|-[^\n]*\n((?: *\|[^\n]*\n)+)", re.MULTILINE)
VALUES = re.compile(r"\.\.\.|\b\d[\d,]*\b|, or ")  # what stands for a value, and where one error is added to another


def test_every_log_line_of_the_tables_is_in_the_code() -> None:
    """What operators look up in docs/operating.md is what the programs write, but for the values in it."""
    page = (PROJECT / "docs" / "operating.md").read_text("utf-8")
    lines = [
        line
        for table in TABLE.findall(page)
        for row in table.splitlines()
        for line in re.findall(r"`([^`]+)`", row.strip().split(" | ")[0])
    ]
    assert len(lines) > 25
    texts = list(texts_of_the_code())
    pieces = {(line, piece.strip()) for line in lines for piece in VALUES.split(line) if piece.strip()}
    assert [line for line, piece in sorted(pieces) if not any(piece in text for text in texts)] == []
