"""Engines: the URL of a hub selects one, whose module is only imported then.

::

    engine = engine_for("redis://localhost/0")
    await engine.start(sink)
"""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from importlib.metadata import entry_points
from typing import NamedTuple

from hubbub.core.history import HistoryPage
from hubbub.engines.base import Engine, Sink
from hubbub.exceptions import InvalidURL, MissingExtra

__all__ = ["ENGINES", "Engine", "EngineSpec", "HistoryPage", "Sink", "doctor_command", "engine_for"]


class EngineSpec(NamedTuple):
    """The place of an engine's class.

    :param target: ``"package.module:Class"``.
    :param extra: the extra of ``hubbub`` that installs packages which the module imports, if any.
    """

    target: str
    extra: str | None = None


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")

#: The group of entry points by which other packages add engines; their names are URL schemes.
GROUP = "hubbub.engines"

#: URL scheme -> engine.
ENGINES: dict[str, EngineSpec] = {
    "memory": EngineSpec("hubbub.engines.memory:MemoryEngine"),
    "sqlite": EngineSpec("hubbub.engines.sqlite:SQLiteEngine"),
    "redis": EngineSpec("hubbub.engines.redis:RedisEngine", "redis"),
    "rediss": EngineSpec("hubbub.engines.redis:RedisEngine", "redis"),
    "redis+cluster": EngineSpec("hubbub.engines.redis:RedisEngine", "redis"),
    "redis+sentinel": EngineSpec("hubbub.engines.redis:RedisEngine", "redis"),
    "redis+unix": EngineSpec("hubbub.engines.redis:RedisEngine", "redis"),
    "postgres": EngineSpec("hubbub.engines.postgres:PostgresEngine", "postgres"),
    "postgresql": EngineSpec("hubbub.engines.postgres:PostgresEngine", "postgres"),
}


def _registered(scheme: str) -> EngineSpec | None:
    """Return the engine that another package has for ``scheme``."""
    for entry in entry_points(group=GROUP, name=scheme):
        return EngineSpec(entry.value)
    return None


def engine_for(url: str, namespace: str = "hubbub") -> Engine:
    """Return the engine for ``url``, not yet started.

    :param url: see :class:`hubbub.Hub`.
    :param namespace: see :class:`Engine`.
    :raises InvalidURL: no engine has that scheme, or the engine does not understand the rest of the URL.
    :raises MissingExtra: the engine needs a package that is not installed.
    """
    if not isinstance(url, str):
        raise InvalidURL(f"Expected a URL such as 'memory://', but got {type(url).__name__}.")
    # Not by urlsplit(): its errors repeat the URL, and with it a password.
    match = _SCHEME.match(url)
    scheme = match[1].lower() if match else ""
    spec = ENGINES.get(scheme) or _registered(scheme)
    if spec is None:
        known = ", ".join(f"{name}://" for name in sorted(ENGINES))
        # Only the scheme is repeated: the rest of the URL may have a password.
        got = f"{scheme}://…" if scheme else "a URL without a scheme"
        raise InvalidURL(f"Expected a URL with one of the schemes {known}, but got {got}.")
    module, _, name = spec.target.partition(":")
    try:
        engine: type[Engine] = getattr(import_module(module), name)
    except ModuleNotFoundError as exc:
        if spec.extra is None or (exc.name or "").partition(".")[0] == "hubbub":
            raise
        raise MissingExtra(
            f"The engine for {scheme}:// needs the package {exc.name!r}, which is not installed. "
            f'Install it with: pip install "hubbub[{spec.extra}]"'
        ) from exc
    return engine(url, namespace)


def doctor_command(url: str, namespace: str = "hubbub") -> str:
    """Return the command that examines the engine at ``url``, for people to copy, without passwords."""
    words = ["hubbub", "doctor", _without_passwords(url)]
    if namespace != "hubbub":
        words += ["--namespace", namespace]
    return shlex.join(words)


def _without_passwords(url: str) -> str:
    scheme, _, rest = url.partition("://")
    credentials, at, where = rest.rpartition("@")
    if re.search("[/?#]", credentials):
        # The last '@' does not end user and password, or they are not quoted: the password cannot be located.
        return f"{scheme}://…"
    user, colon, _ = credentials.partition(":")
    where = re.sub(r"(?i)([?&][^=&]*(?:pass|pw|secret|token)[^=&]*=)[^&]*", r"\1PASSWORD", where)
    return f"{scheme}://{user}{colon and ':PASSWORD'}{at}{where}"
