"""How the code is divided: which part may import which, unique names, and tests without private attributes."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

# What each part of worker/ may import besides itself. A part is a folder, or a module that several parts use.
VOCABULARY = {"errors", "messages", "registry"}
SHARED = VOCABULARY | {"content", "runtime", "providers", "sending"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "messages": set(),
    "registry": set(),
    "content": {"errors", "messages"},
    "runtime": {"errors", "registry", "content"},
    "providers": {"errors", "messages", "content"},
    "sending": VOCABULARY | {"content", "runtime", "providers"},
    "campaigns": SHARED,
    "campaign_commands": SHARED | {"campaigns"},
    "calling": SHARED,
    "notifications": SHARED,
    "reminding": SHARED | {"notifications"},
    "consent": VOCABULARY | {"content", "runtime", "sending"},
    "bouncing": VOCABULARY | {"content", "runtime"},
    "vectors": VOCABULARY | {"content", "runtime", "providers"},
    "supervision": VOCABULARY | {"content", "runtime"},
    "starting": VOCABULARY | {"content", "runtime", "providers", "vectors"},
    "web": VOCABULARY | {"content", "runtime", "sending", "campaigns"},  # of these two: quotas and forecasts
}

# Libraries that only one module may import, because they cost every process that does so memory and time.
ONLY_IN = {
    "qdrant_client": "worker.vectors.client",
    "imapclient": "worker.providers.imap",
    "procrastinate": "worker.runtime.unit_queue",
    "psycopg": "worker.runtime.unit_queue",
}

# Pairs of modules, folders or classes of worker/ that differ by an s only, and why they may.
TWINS = {
    ("campaign", "campaigns"): "the program's name is an interface to its users; the folder has its parts",
    ("notification", "notifications"): "the folder's central module is named after the one thing the folder is about",
}

# Names with an underscore that are public all the same: those of namedtuples.
PUBLIC_DESPITE_UNDERSCORE = {"_asdict", "_fields", "_make", "_replace"}


@cache
def modules(package: str) -> dict[str, ast.Module]:
    """Every module of a package by its full name; a package's own code is under the package's name."""
    found = {}
    for path in sorted((PROJECT / package).rglob("*.py")):
        name = ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text("utf-8"), str(path))
    return found


def imported_names(tree: ast.AST) -> Iterator[str]:
    """All that a module imports, inside functions too; ``from a import b`` may import ``a`` or the module ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative imports are not followed here"
            assert not node.level, "relative imports are not followed here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imports(package: str) -> dict[str, set[str]]:
    """Which other modules of the package each of its modules imports."""
    known = modules(package)
    return {name: (known.keys() & set(imported_names(tree))) - {name} for name, tree in known.items()}


def part_of(module: str) -> str:
    """The part of worker/ that a module belongs to: runtime for worker.runtime.db, errors for worker.errors."""
    return module.split(".")[1] if "." in module else ""


def programs() -> set[str]:
    """The modules at the top of worker/ that are run and not imported."""
    return {name for name in modules("worker") if name.count(".") == 1 and part_of(name) not in ALLOWED}


def cycle(arrows: dict[str, set[str]]) -> list[str]:
    """A way along the arrows that comes back to its start; empty when there is none."""
    finished: set[str] = set()

    def walk(way: list[str]) -> list[str]:
        for target in sorted(arrows[way[-1]] - finished):
            if target in way:
                return [*way[way.index(target) :], target]
            if found := walk([*way, target]):
                return found
        finished.add(way[-1])
        return []

    return next(filter(None, (walk([start]) for start in sorted(arrows) if start not in finished)), [])


def test_the_allowed_direction_is_one_way() -> None:
    """Following the allowed arrows from part to part never leads back; every folder of worker/ has its entry."""
    assert cycle(ALLOWED) == []
    folders = {path.parent.name for path in (PROJECT / "worker").glob("*/__init__.py")}
    assert folders <= ALLOWED.keys()


def test_arrows_between_the_parts_of_the_worker() -> None:
    """A part imports only what it may: content/ no provider, providers/ no job, nobody a program."""
    wrong = [
        f"{name} imports {target}"
        for name, targets in imports("worker").items()
        for target in sorted(targets)
        if name not in programs() and part_of(target) not in ALLOWED[part_of(name)] | {part_of(name), ""}
    ]
    assert wrong == []


def test_programs_are_run_and_not_imported() -> None:
    """No module imports a program, a program neither."""
    assert {"worker.campaign", "worker.watchdog", "worker.migrate"} <= programs()
    wrong = {name: targets & programs() for name, targets in imports("worker").items() if targets & programs()}
    assert wrong == {}


@pytest.mark.parametrize("package", ["worker", "sandbox", "benchmarks"])
def test_no_modules_import_each_other(package: str) -> None:
    """No module imports another one that imports it, directly or through others."""
    assert len(modules(package)) > 5
    assert cycle(imports(package)) == []


def test_production_imports_nothing_of_development() -> None:
    """The worker runs where sandbox/, tests/ and benchmarks/ are not installed."""
    development = {"sandbox", "tests", "benchmarks", *(path.stem for path in (PROJECT / "tests").rglob("*.py"))}
    wrong = [
        f"{name} imports {target}"
        for name, tree in modules("worker").items()
        for target in imported_names(tree)
        if target.split(".")[0] in development
    ]
    assert wrong == []


@pytest.mark.parametrize(("library", "only_in"), ONLY_IN.items())
def test_expensive_libraries(library: str, only_in: str) -> None:
    """A library that costs much is imported by one module, which its users import late or alone."""
    users = {name for name, tree in modules("worker").items() if library in map(root_of, imported_names(tree))}
    assert users == {only_in}


def root_of(target: str) -> str:
    return target.split(".")[0]


def classes() -> list[tuple[str, str]]:
    """Name and module of each class of worker/."""
    return [
        (node.name, module)
        for module, tree in modules("worker").items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]


def test_class_names_are_unique() -> None:
    """A class's name alone says which class is meant."""
    places = defaultdict(list)
    for name, module in classes():
        places[name].append(module)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_twins() -> None:
    """No two modules, folders or classes have names that differ only by an s at the end."""
    names = set(chain.from_iterable(name.split(".")[1:] for name in modules("worker")))
    for group in (names, {name.lstrip("_") for name, _ in classes()}):
        found = {(name, f"{name}s") for name in group if f"{name}s" in group}
        assert found - TWINS.keys() == set()
    assert all(set(pair) <= names for pair in TWINS), "a pair in this list is gone: remove it from the list"


def attribute_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each attribute of anything but ``self`` and ``cls`` that is read, patched or imported."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name):
                yield node.lineno, name
            case ast.ImportFrom(names=aliases):
                yield from ((node.lineno, alias.name) for alias in aliases)
            case ast.Call(func=ast.Name(id="getattr" | "setattr") | ast.Attribute(attr="setattr" | "delattr")):
                strings = (each.value for each in node.args if isinstance(each, ast.Constant))
                yield from ((node.lineno, text) for text in strings if isinstance(text, str))


def test_tests_read_no_private_attribute() -> None:
    """A test uses what other code may use: a public name, a constructor's argument, or what is seen from outside."""
    found = defaultdict(list)
    for path in sorted((PROJECT / "tests").rglob("*.py")):
        for line, name in attribute_names(ast.parse(path.read_text("utf-8"))):
            if re.fullmatch(r"_[a-zA-Z]\w*", name) and name not in PUBLIC_DESPITE_UNDERSCORE:
                found[path.relative_to(PROJECT / "tests").as_posix()].append(f"{line}: {name}")
    assert dict(found) == {}
