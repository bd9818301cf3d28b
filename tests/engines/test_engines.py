"""Engines by URL: schemes, extras, entry points, and messages without passwords."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubbub.core.publication import Position, Publication
from hubbub.engines import ENGINES, Engine, EngineSpec, doctor_command, engine_for
from hubbub.engines.memory import MemoryEngine
from hubbub.exceptions import HubbubError, HubNotRunning, InvalidURL, MissingExtra
from hubbub.testing.engine_contract import Collector
from tests.engines.errors import shown

#: Installs a module with the given source, in which the URL ``pigeon://`` finds its engine.
Install = Callable[..., None]

GOOD = """
from hubbub.engines.memory import MemoryEngine

class PigeonEngine(MemoryEngine):
    def __init__(self, url, namespace):
        self.url = url
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    monkeypatch.syspath_prepend(tmp_path)

    def install(source: str, extra: str | None = "pigeon") -> None:
        (tmp_path / "pigeon_engine.py").write_text(source)
        importlib.invalidate_caches()
        # Set in order to be restored when the test ends.
        monkeypatch.setitem(sys.modules, "pigeon_engine", None)
        monkeypatch.delitem(sys.modules, "pigeon_engine")
        monkeypatch.setitem(ENGINES, "pigeon", EngineSpec("pigeon_engine:PigeonEngine", extra))

    return install


# engine_for()


@pytest.mark.parametrize("url", ["memory://", "MEMORY://"])
def test_memory_urls_name_the_memory_engine(url: str) -> None:
    engine = engine_for(url)
    assert type(engine) is MemoryEngine
    assert engine.url == url


def test_the_scheme_selects_the_engine_which_gets_the_url(install: Install) -> None:
    install(GOOD)
    engine = engine_for("pigeon://loft/7?speed=2")
    assert type(engine).__name__ == "PigeonEngine"
    assert engine.url == "pigeon://loft/7?speed=2"


def test_an_engine_is_not_imported_before_its_url_is_used(install: Install) -> None:
    install("raise AssertionError('imported')")
    engine_for("memory://")
    with pytest.raises(AssertionError, match="imported"):
        engine_for("pigeon://")


@pytest.mark.parametrize("scheme", sorted(ENGINES))
def test_every_engine_in_the_table_belongs_to_hubbub(scheme: str) -> None:
    module, _, name = ENGINES[scheme].target.partition(":")
    assert module.startswith("hubbub.engines.")
    assert name.endswith("Engine")
    assert scheme == scheme.lower()


def test_the_error_of_an_unknown_scheme_lists_the_existing_ones(install: Install) -> None:
    install(GOOD)
    with pytest.raises(InvalidURL, match=r"schemes .*memory://, .*pigeon://.*, but got carrier://…\.$"):
        engine_for("carrier://localhost/0")


@pytest.mark.parametrize("url", ["", "localhost", "://localhost", "/var/chat.db"])
def test_a_url_without_a_scheme_is_refused(url: str) -> None:
    with pytest.raises(InvalidURL, match=r"schemes .*memory://.*, but got a URL without a scheme\.$"):
        engine_for(url)


@pytest.mark.parametrize(("url", "named"), [(None, "NoneType"), (b"memory://", "bytes"), (Path("x"), "Path")])
def test_a_url_that_is_not_a_str_is_refused(url: Any, named: str) -> None:
    with pytest.raises(InvalidURL, match=f"^Expected a URL such as 'memory://', but got \\w*{named}\\.$"):
        engine_for(url)


@pytest.mark.parametrize(
    "url",
    [
        "unknown://user:s3cret@host/0",
        "user:s3cret@host",
        "//user:s3cret@host",
        "memory://user:s3cret@host",
        "unknown://user:s3cret@[host",
        "unknown://user:s3cret℀@host",
        "redis//s3cret@host:6379",
    ],
    ids=["scheme", "no scheme", "only slashes", "memory", "malformed", "normalised", "misspelt"],
)
def test_no_error_shows_a_password(url: str) -> None:
    with pytest.raises(InvalidURL) as info:
        engine_for(url)
    assert "s3cret" not in shown(info.value)


def test_invalid_url_can_be_caught_as_a_value_error() -> None:
    assert issubclass(InvalidURL, HubbubError)
    assert issubclass(InvalidURL, ValueError)


# Extras


def test_the_error_of_a_missing_package_names_the_extra_to_install(install: Install) -> None:
    install("import homing_pigeon.asyncio")
    with pytest.raises(MissingExtra) as info:
        engine_for("pigeon://user:s3cret@loft")
    message = str(info.value)
    assert 'pip install "hubbub[pigeon]"' in message
    assert "pigeon://" in message
    assert "'homing_pigeon'" in message
    assert "s3cret" not in message
    assert isinstance(info.value.__cause__, ModuleNotFoundError)


def test_a_missing_extra_can_be_caught_as_an_import_error() -> None:
    assert issubclass(MissingExtra, HubbubError)
    assert issubclass(MissingExtra, ImportError)


def test_a_missing_package_that_no_extra_installs_is_not_a_missing_extra(install: Install) -> None:
    install("import homing_pigeon", extra=None)
    with pytest.raises(ModuleNotFoundError, match="homing_pigeon"):
        engine_for("pigeon://")


@pytest.mark.parametrize(
    "source",
    [
        "from hubbub.core.publication import no_such_name",
        "from json import no_such_name",
        "import hubbub.core.no_such_module",
        "from hubbub.no_such_module import thing",
    ],
    ids=["name in hubbub", "name elsewhere", "module", "from module"],
)
def test_a_mistake_in_the_engine_itself_is_not_a_missing_extra(install: Install, source: str) -> None:
    # "pip install" would not help.
    install(source)
    with pytest.raises(ImportError, match="no_such_") as info:
        engine_for("pigeon://")
    assert not isinstance(info.value, MissingExtra)


def test_an_engine_whose_package_was_installed_meanwhile_is_found(install: Install) -> None:
    install("import homing_pigeon")
    with pytest.raises(MissingExtra):
        engine_for("pigeon://")
    install(GOOD)
    assert isinstance(engine_for("pigeon://"), Engine)


# memory://


HELLO = Publication("chat", b"Hello", "text")
BYE = Publication("chat", b"Bye", "text", exclude="ann")


@pytest.mark.parametrize(
    "url",
    ["memory://localhost", "memory:///", "memory:///chat", "memory://?size=1", "memory:chat", "memory://#x"],
)
def test_memory_urls_have_nothing_behind_the_scheme(url: str) -> None:
    with pytest.raises(InvalidURL, match=r"^Expected 'memory://' with nothing behind it, or "):
        engine_for(url)


def test_memory_stays_within_the_process() -> None:
    assert MemoryEngine("memory://").across_processes is False


async def test_memory_delivers_publications_at_once_and_in_order() -> None:
    engine, sink = MemoryEngine("memory://"), Collector()
    await engine.start(sink)
    for publication in (HELLO, BYE):
        assert await engine.publish(publication) == Position(0, "")
        assert sink.publications[-1] is publication
    assert sink.publications == [HELLO, BYE]
    assert (sink.disconnects, sink.reconnects) == (0, 0)


async def test_memory_accepts_nothing_before_it_is_started() -> None:
    with pytest.raises(HubNotRunning, match="has not been started"):
        await MemoryEngine("memory://").publish(HELLO)


async def test_memory_delivers_nothing_after_it_is_stopped() -> None:
    engine, sink = MemoryEngine("memory://"), Collector()
    await engine.start(sink)
    await engine.stop()
    with pytest.raises(HubNotRunning):
        await engine.publish(HELLO)
    assert sink.publications == []


async def test_memory_can_be_started_again() -> None:
    engine, before, after = MemoryEngine("memory://"), Collector(), Collector()
    await engine.start(before)
    await engine.publish(HELLO)
    await engine.stop()
    await engine.start(after)
    await engine.publish(BYE)
    assert (before.publications, after.publications) == ([HELLO], [BYE])


def test_hub_not_running_can_be_caught_as_a_runtime_error() -> None:
    assert issubclass(HubNotRunning, HubbubError)
    assert issubclass(HubNotRunning, RuntimeError)


def test_other_packages_add_engines_by_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "carrots.py").write_text(GOOD.replace("Pigeon", "Carrot"))
    info = tmp_path / "carrots-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carrots\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hubbub.engines]\ncarrot = carrots:CarrotEngine\n")
    importlib.invalidate_caches()
    assert type(engine_for("carrot://field")).__name__ == "CarrotEngine"


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("redis://cache:6379/0", "hubbub doctor redis://cache:6379/0"),
        ("redis://app:s3cret@cache/0", "hubbub doctor redis://app:PASSWORD@cache/0"),
        ("redis://:s3cret@cache/0", "hubbub doctor redis://:PASSWORD@cache/0"),
        ("postgresql://app@db/shop", "hubbub doctor postgresql://app@db/shop"),
        (
            "postgresql://db/shop?user=app&password=s3cret&sslmode=require",
            "hubbub doctor 'postgresql://db/shop?user=app&password=PASSWORD&sslmode=require'",
        ),
        # Passwords that are not quoted as they should be.
        ("redis://app:s3@cret@cache/0", "hubbub doctor redis://app:PASSWORD@cache/0"),
        ("redis://app:s3/cret@cache/0", "hubbub doctor redis://…"),
        ("redis://app:s3?cret@cache/0", "hubbub doctor redis://…"),
        ("redis://app:s3#cret@cache/0", "hubbub doctor redis://…"),
        ("sqlite:///a file.db", "hubbub doctor 'sqlite:///a file.db'"),
    ],
)
def test_the_command_that_examines_an_engine_has_no_password_in_it(url: str, command: str) -> None:
    assert doctor_command(url).replace("'redis://…'", "redis://…") == command
    assert doctor_command(url, "my shop") == f"{doctor_command(url)} --namespace 'my shop'"


def test_a_memory_engine_may_be_alone() -> None:
    assert not engine_for("memory://").is_alone
    assert engine_for("memory://?alone=yes").is_alone
