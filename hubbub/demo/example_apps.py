"""The programs from the documentation, which the demo serves below ``/examples``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from fastapi import FastAPI

from hubbub import Hub

EXAMPLES = ("echo", "items", "manager", "chat")


def mount_examples(app: FastAPI, url: str, hosts: Sequence[str] | None) -> None:
    """Mount each example at ``/examples/NAME``.

    :param app: the demo's app.
    :param url: the engine's URL, for the example that has a hub.
    :param hosts: the host names that this hub answers to.
    """
    for name in EXAMPLES:
        example = _load(name)
        app.mount(f"/examples/{name}", example.app)
        if name == "chat":
            # The example's own hub reaches only one process, and the lifespan of a mounted app does not run.
            # So the demo's app starts and stops a hub for it.
            hub = vars(example)["hub"] = Hub(url, namespace="example", hosts=hosts)
            app.include_router(hub.router, prefix="/examples/chat")


def _load(name: str) -> ModuleType:
    spec = spec_from_file_location(f"hubbub.demo.examples.{name}", _folder() / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _folder() -> Path:
    """Return the folder of the examples: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    folders = [package / "examples", package.parents[1] / "examples"]
    for folder in folders:
        if (folder / "chat.py").is_file():
            return folder
    raise FileNotFoundError(
        f"The examples are in none of {', '.join(map(str, folders))}. Install Hubbub again, or run the demo "
        "from a checkout."
    )
