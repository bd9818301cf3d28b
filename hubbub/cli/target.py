"""The target of ``hubbub run``: ``module:app``, checked with errors that name the fix."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from starlette.applications import Starlette

from hubbub.cli.failures import fail
from hubbub.hub import Hub


def check_target(target: str, *, import_it: bool) -> None:
    """Exit with an error unless ``target`` names an ASGI application below the current directory.

    :param target: the application, as ``"package.module:name"``.
    :param import_it: whether to import the module, which runs its code; otherwise the module only has to
        exist.
    """
    # As uvicorn does with its app_dir. Worker processes inherit the path.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        fail(
            f"Expected a target such as 'main:app' (module, colon, name of the app in the module), "
            f"but got {target!r}.{_hint(target)}"
        )
    if not import_it:
        if not _exists(module_name):
            _no_module(module_name, target)
        return
    app: object = _import(module_name, target)
    for part in name.split("."):
        if not hasattr(app, part):
            fail(f"The module {module_name!r} has no {name!r}.{_apps_in(sys.modules[module_name])}")
        app = getattr(app, part)
    if isinstance(app, Hub):
        fail(f"{target!r} is the hub. Name the FastAPI app that includes its router.")
    if not callable(app):
        fail(f"Expected {target!r} to be an ASGI application, but it is {type(app).__name__}.")


def _import(module_name: str, target: str) -> ModuleType:
    try:
        return import_module(module_name)
    except ModuleNotFoundError as exc:
        # The target itself may be missing, or a module that it imports.
        if exc.name is not None and (module_name == exc.name or module_name.startswith(f"{exc.name}.")):
            _no_module(exc.name, target)
        traceback.print_exc()
        fail(f"The module {module_name!r} needs {exc.name!r}, which is not installed.")
    except Exception as exc:
        traceback.print_exc()
        fail(f"The module {module_name!r} could not be imported: {type(exc).__name__}: {exc}")


def _no_module(name: str, target: str) -> NoReturn:
    fail(f"There is no module {name!r} in {Path.cwd()} or among the installed packages.{_hint(target)}")


def _exists(module_name: str) -> bool:
    try:
        return find_spec(module_name) is not None
    except ModuleNotFoundError:
        return False


def _hint(target: str) -> str:
    """Suggest a target for a path such as ``app/main.py``."""
    path, _, name = target.partition(":")
    if not path.endswith(".py"):
        return f" Did you mean '{path}:app'?" if path.isidentifier() and not name else ""
    module = ".".join(Path(path).with_suffix("").parts)
    return f" Did you mean '{module}:{name or 'app'}'?"


def _apps_in(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, Starlette)]
    return f" Its apps are: {', '.join(names)}." if names else " It has no FastAPI app."
