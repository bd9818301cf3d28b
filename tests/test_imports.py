"""Imports point downwards, from layer to layer."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import hubbub
from hubbub.exceptions import HubbubError

PACKAGE = Path(hubbub.__file__).parent

#: From the top down. A room is a module or a package right below ``hubbub``; ``hubbub`` itself is the public
#: names. A room may import from itself and from the layers below it, not from its neighbours in a layer.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli", "demo", "testing"),
    ("hubbub",),
    ("hub",),
    ("metrics", "routes"),
    ("channels",),
    ("connection",),
    ("security",),
    ("node",),
    ("publisher",),
    ("servers",),
    ("transports",),
    ("engines",),
    ("protocols",),
    ("core",),
    ("exceptions",),
    ("codes", "threads", "types"),
)

#: Imports that are forbidden although they point downwards.
FORBIDDEN = {("transports", "engines")}

#: Modules that the core does not import, so that tests can drive it with plain calls.
NOT_IN_THE_CORE = {"asyncio", "fastapi", "socket", "starlette", "uvicorn"}

DEPTH = {room: depth for depth, layer in enumerate(LAYERS) for room in layer}

MODULES: dict[str, Path] = {}
for _path in sorted(PACKAGE.rglob("*.py")):
    _parts = _path.relative_to(PACKAGE.parent).with_suffix("").parts
    MODULES[".".join(_parts[:-1] if _parts[-1] == "__init__" else _parts)] = _path


class Imports(ast.NodeVisitor):
    """The modules that a module imports when it runs."""

    def __init__(self, module: str) -> None:
        self.found: set[str] = set()
        is_package = MODULES[module].name == "__init__.py"
        self._package = module.split(".") if is_package else module.split(".")[:-1]
        self.visit(ast.parse(MODULES[module].read_text(encoding="utf-8")))

    def visit_If(self, node: ast.If) -> None:
        is_for_checkers_only = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for child in node.orelse if is_for_checkers_only else ast.iter_child_nodes(node):
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        self.found.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        above = self._package[: len(self._package) + 1 - node.level] if node.level else []
        origin = ".".join([*above, *filter(None, [node.module])])
        for alias in node.names:
            inner = f"{origin}.{alias.name}"
            self.found.add(inner if inner in MODULES else origin)


IMPORTS = {module: Imports(module).found for module in MODULES}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def crossings() -> Iterator[tuple[str, str]]:
    """Every import from one room into another."""
    for module, imported in IMPORTS.items():
        yield from (
            (module, name) for name in sorted(imported & MODULES.keys()) if room(name) != room(module)
        )


def test_every_module_has_its_place() -> None:
    homeless = {room(module) for module in MODULES} - DEPTH.keys()
    assert not homeless, (
        f"{sorted(homeless)} are in no layer. Add each to LAYERS in {Path(__file__).name}, "
        "as low as its imports allow."
    )
    gone = DEPTH.keys() - {room(module) for module in MODULES}
    assert not gone, f"{sorted(gone)} do not exist. Remove them from LAYERS in {Path(__file__).name}."


def test_imports_point_downwards() -> None:
    wrong = [
        f"{module} imports {name}, which is {'beside' if depth == 0 else 'above'} it"
        for module, name in crossings()
        if (depth := DEPTH[room(module)] - DEPTH[room(name)]) >= 0
    ]
    assert not wrong, "\n".join(wrong)


def test_forbidden_imports() -> None:
    wrong = [
        f"{module} imports {name}" for module, name in crossings() if (room(module), room(name)) in FORBIDDEN
    ]
    assert not wrong, "\n".join(wrong)


def test_the_core_reaches_no_event_loop_and_no_framework() -> None:
    # Module -> how the core comes to import it.
    paths = {module: module for module in MODULES if room(module) == "core"}
    reached = list(paths)
    for module in reached:
        for name in sorted(IMPORTS[module] - paths.keys()):
            paths[name] = f"{paths[module]} > {name}"
            if name in MODULES:
                reached.append(name)
    wrong = [path for name, path in paths.items() if name.split(".")[0] in NOT_IN_THE_CORE]
    assert not wrong, "\n".join(wrong)


def test_no_public_name_is_there_twice() -> None:
    # Their order is a matter of ruff.
    assert len(hubbub.__all__) == len(set(hubbub.__all__))


def test_public_names_are_those_that_the_package_has() -> None:
    names = {
        name
        for name, value in vars(hubbub).items()
        if not name.startswith("_") and name != "annotations" and not isinstance(value, ModuleType)
    }
    assert set(hubbub.__all__) == names


def descendants(cls: type[HubbubError]) -> Iterator[type[HubbubError]]:
    for child in cls.__subclasses__():
        yield child
        yield from descendants(child)


#: Modules whose exceptions do not leave them.
INSIDE = ("hubbub.engines.", "hubbub.routes.")


def test_every_exception_is_public() -> None:
    family: list[type[HubbubError]] = [HubbubError, *descendants(HubbubError)]
    # Exceptions inside an engine or a door are caught as the public exception that they derive from. Whether
    # engines have been imported by now depends on the tests that came before.
    modules = {cls: cls.__module__ for cls in family if not cls.__module__.startswith(INSIDE)}
    ours = {cls.__name__ for cls, module in modules.items() if module.startswith("hubbub.")}
    assert ours <= set(hubbub.__all__)
    assert ours == set(hubbub.exceptions.__all__)


@pytest.mark.parametrize("package", ["asyncpg", "nats", "prometheus_client", "redis"])
def test_importing_hubbub_imports_no_extra(package: str, tmp_path: Path) -> None:
    # Importable also where it is not installed; otherwise an import that is tried and forgiven goes unseen.
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("")
    code = f"import sys, hubbub; print({package!r} in sys.modules)"
    path = os.pathsep.join([str(tmp_path), str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.stdout.strip(), run.returncode) == ("False", 0), run.stderr
