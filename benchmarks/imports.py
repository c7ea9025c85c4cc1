"""What the modules of a program cost: imports them in this process and prints bytes of memory by package, as JSON.

    python -m benchmarks.imports worker.campaign

A module's cost is what the process's own memory grows by while it is imported, without the modules that it imports.
Run it in a process of its own: what is imported already costs nothing.
"""

import importlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

_OWN = (b"Private_Clean:", b"Private_Dirty:")


def own_bytes(pid: int | str = "self") -> int:
    """The memory that only this process has."""
    return memory(pid, *_OWN)


def memory(pid: int | str, *fields: bytes) -> int:
    """The sum of these fields of /proc/<pid>/smaps_rollup (proc(5)), in bytes. Raises OSError when it has ended."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines()  # to decode them may import a codec
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(fields))


class ImportMeter(MetaPathFinder):
    """Finds modules as Python does, and measures what loading each of them costs."""

    def __init__(self) -> None:
        self.costs: Counter[str] = Counter()  # bytes by package
        self._inner = [0]  # of the modules that are being loaded: what those that they import cost

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        for finder in (BuiltinImporter, FrozenImporter, PathFinder):
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                package = name.partition(".")[0]
                loader: Any = spec.loader
                if not isinstance(loader, type):  # those of built-in and frozen modules are classes, and cost nothing
                    loader.create_module = self._measured(package, loader.create_module)
                    loader.exec_module = self._measured(package, loader.exec_module)
                return spec
        return None

    def _measured(self, package: str, load: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def measured(argument: Any) -> Any:
            before = own_bytes()
            self._inner.append(0)
            try:
                return load(argument)
            finally:
                grown = own_bytes() - before
                self.costs[package] += grown - self._inner.pop()
                self._inner[-1] += grown

        return measured


def main(modules: Sequence[str]) -> int:
    meter = ImportMeter()
    sys.meta_path.insert(0, meter)
    for each in modules:
        importlib.import_module(each)
    print(json.dumps(meter.costs))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
