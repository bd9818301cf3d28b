"""``hubbub doctor`` on servers that are well, unreachable, or set up badly."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg
import pytest

from hubbub.cli.doctor import without_password
from hubbub.engines import ENGINES, EngineSpec
from hubbub.engines.postgres.address import Address
from hubbub.engines.postgres.diagnostics import inspect as inspect_postgres
from hubbub.engines.redis.diagnostics import inspect as inspect_redis
from hubbub.engines.sqlite import diagnostics as sqlite_diagnostics
from hubbub.exceptions import EngineUnavailable
from tests.commands import hubbub
from tests.engines.postgres.server import PostgresServer
from tests.engines.redis.server import RedisServer, redis_server
from tests.uvicorn_process import free_port

# The package's attribute of this name is the command.
doctor_module = import_module("hubbub.cli.doctor")

#: The server that the tests start, by its name.
REDIS = "Redis" if os.environ.get("HUBBUB_TEST_REDIS_SERVER") else "Valkey"

#: The output for a healthy engine of any kind.
WELL = (
    "✓ the server is reachable (",
    "✓ messages reach other processes (",
    "✓ histories are stored and read\n",
    "✓ a message with an idempotency key is published once\n",
    "✓ presence is shared between processes\n",
    "All is well.\n",
)


def doctor(url: str, *words: str) -> tuple[int, str]:
    done = hubbub("doctor", url, *words)
    assert done.err == ""
    assert "s3cret" not in done.out
    return done.code, done.out


def problems(url: str, *words: str) -> str:
    """The output for an engine that has problems."""
    code, out = doctor(url, *words)
    assert code == 1, out
    assert out.endswith("There are problems.\n")
    return out


# Engines that are well


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ("sqlite", ["✓ SQLite 3.", "hub.db is on a local disk", "in WAL mode"]),
        ("redis", [f"✓ {REDIS} ", "✓ it evicts nothing (maxmemory-policy noeviction)", "✓ a restart keeps"]),
        ("redis_cluster", [f"✓ {REDIS} ", "redis+cluster://127.0.0.1"]),
        ("postgres", ["✓ PostgreSQL ", "✓ notifications arrive (LISTEN)", "postgres owns the schema"]),
    ],
)
def test_an_engine_that_is_well(
    engine: str, says: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if engine == "sqlite":
        url = f"sqlite:///{tmp_path / 'hub.db'}"
    else:
        url = request.getfixturevalue(f"{engine}_url")
    code, out = doctor(url, "--namespace", "test-doctor")
    for text in says:
        assert text in out
    if engine == "postgres" and "HUBBUB_TEST_POSTGRES_URL" not in os.environ:
        # The server of the tests does not sync.
        assert "✗ a crash of the machine may destroy the database (fsync off)\n" in out
        assert "  → ALTER SYSTEM SET fsync = on\n" in out
        assert code == 1
    else:
        assert code == 0, out
    for text in WELL[: None if code == 0 else -1]:
        assert text in out


def test_nothing_is_left_of_the_scratch_channel(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    doctor(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM hubbub_publications WHERE offset > 0").fetchone()
    assert count == 0


# URLs, extras, and unreachable servers


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("memory://", "memory://: Expected the URL of an engine that reaches other processes"),
        ("carrier://app:s3cret@host/x", "carrier://…@host/x: Expected a URL with one of the schemes"),
        ("app:s3cret@host", "the URL: Expected a URL with one of the schemes"),
        ("redis://app:s3cret@host:port", "redis://…@host:port: Expected host:port"),
        ("postgresql://app:s3/cret@host/db", "postgresql://…: Expected a URL such as 'postgresql://"),
    ],
)
def test_a_url_that_is_not_understood(url: str, says: str) -> None:
    assert f"✗ {says}" in problems(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://app:s3cret@host:6379/0", "redis://…@host:6379/0"),
        ("redis://:s3@cret@host", "redis://…@host"),
        ("redis://:s3/cret@host", "redis://…"),
        ("redis://:s3?cret@host", "redis://…"),
        ("redis://:s3#cret@host", "redis://…"),
        ("postgresql://host/db?password=s3cret", "postgresql://host/db?…"),
        ("postgresql://host/db?password=s3@cret", "postgresql://…"),
        ("sqlite:///hub.db", "sqlite:///hub.db"),
    ],
)
def test_no_part_of_a_password_is_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    "engine", ["redis://app:s3cret@127.0.0.1:{}", "postgresql://app:s3cret@127.0.0.1:{}/db"]
)
def test_an_unreachable_server(engine: str) -> None:
    out = problems(engine.format(free_port()))
    assert "  → Start the server, or check host and port in the URL." in out


@pytest.mark.parametrize(("package", "url"), [("redis", "redis://h"), ("asyncpg", "postgresql://h/db")])
def test_an_extra_that_is_missing(
    package: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This module is found first, and fails like a package that is not installed.
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('No module', name={package!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = problems(url)
    assert f"needs the package {package!r}, which is not installed" in out
    assert 'pip install "hubbub[' in out


# SQLite


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    out = problems(f"sqlite:///{tmp_path}/nowhere/hub.db")
    assert "cannot be used: its directory does not exist" in out
    assert "  → Create the directory" in out


def test_a_directory_that_no_user_may_write_to() -> None:
    # root neither.
    out = problems("sqlite:////proc/hub.db")
    assert "unable to open database file" in out
    assert "  → Create the directory, and allow the user that the app runs as to write to it." in out


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    path.write_text("Not a database. " * 100)
    assert "  → Use a file of its own for Hubbub." in problems(f"sqlite:///{path}")


def test_the_application_s_own_database(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
    out = problems(f"sqlite:///{path}")
    assert "✗ the file also holds tables of another program (orders)" in out
    # The other checks run all the same.
    assert "✓ histories are stored and read" in out


def test_a_file_on_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sqlite3.connect(tmp_path / "hub.db").close()
    monkeypatch.setattr(sqlite_diagnostics, "_file_system", lambda directory: "nfs4")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    findings = sqlite_diagnostics.inspect(str(tmp_path / "hub.db"))
    wrong = [each.text for each in findings if not each.ok]
    assert wrong == [
        f"{tmp_path / 'hub.db'} is on a network (nfs4), where processes do not see the writes of others",
        "the disk has 0 MiB left",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_the_file_system_is_that_of_the_innermost_mount() -> None:
    assert sqlite_diagnostics._file_system("/proc/self") == "proc"
    assert sqlite_diagnostics._file_system("/") not in ("", "proc")


# Redis


#: The rights that the doctor advises.
RIGHTS = [
    *("~test-acl:*", "&test-acl:*", "+@connection", "+@pubsub", "+@scripting", "+@hash", "+@stream"),
    *("+@string", "+@sortedset", "+exists", "+del", "+pexpire", "+pttl", "+time", "+role", "+info"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def with_user(server: RedisServer, *rules: str) -> str:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "reset", "resetchannels", "on", ">s3cret", *rules)
    return f"redis://app:s3cret@127.0.0.1:{server.port}"


def test_a_user_with_the_rights_that_the_doctor_advises(server: RedisServer) -> None:
    code, out = doctor(with_user(server, *RIGHTS), "--namespace", "test-acl")
    assert code == 0, out


@pytest.mark.parametrize(
    "missing",
    ["~test-acl:*", "&test-acl:*", "+@pubsub", "+@scripting", "+@stream"],
)
def test_a_user_without_one_of_the_rights(server: RedisServer, missing: str) -> None:
    rules = [rule for rule in RIGHTS if rule != missing]
    out = problems(with_user(server, *rules), "--namespace", "test-acl")
    assert "  → Grant the user the rights that Hubbub needs: ACL SETUSER USER ~NAMESPACE:*" in out
    # The advice has all rights of this list.
    for right in RIGHTS[2:]:
        assert right in out


def test_a_user_who_may_not_read_the_server_s_settings(server: RedisServer) -> None:
    rules = [rule for rule in RIGHTS if rule not in ("+info", "+role")]
    code, out = doctor(with_user(server, *rules), "--namespace", "test-acl")
    assert code == 0
    assert "does not let this user read its state (INFO)" in out


def test_a_wrong_password(server: RedisServer) -> None:
    url = with_user(server, *RIGHTS).replace("s3cret", "s3cret-not")
    assert "  → Check the user and the password in the URL." in problems(url)


def test_a_server_that_evicts_and_does_not_persist() -> None:
    options = ("maxmemory", "100mb", "maxmemory-policy", "allkeys-lru")
    limit = ("client-output-buffer-limit", "pubsub 100kb 50kb 60")
    with redis_server(*options, *limit) as server:
        with server.client() as client:
            client.config_set("appendonly", "no")
        out = problems(server.url)
        assert "✗ when its memory is full it evicts histories (maxmemory-policy allkeys-lru)" in out
        assert "→ Use a server of its own for Hubbub, and: CONFIG SET maxmemory-policy noeviction" in out
        assert "✗ it disconnects nodes that fall behind for a moment (client-output-buffer-limit pub" in out
        assert "! a restart loses the last histories" in out
        # The advice is enough.
        with server.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("client-output-buffer-limit", "pubsub 33554432 8388608 60")
        assert doctor(server.url)[0] == 0


def test_a_replica(server: RedisServer) -> None:
    with redis_server("replicaof", f"127.0.0.1 {server.port}") as replica:
        out = problems(replica.url)
    assert "is a replica" in out
    assert "  → Use the URL of the primary" in out


def test_a_server_that_does_not_answer(server: RedisServer) -> None:
    with server.frozen():
        out = problems(server.url)
    assert "no answer within" in out
    assert "  → Check whether a firewall drops the connection" in out


def asking(info: str) -> Callable[..., Any]:
    async def ask(*words: str) -> bytes:
        if words[0] != "INFO":
            raise EngineUnavailable("NOPERM")
        return info.encode()

    return ask


@pytest.mark.parametrize(
    ("info", "wrong"),
    [
        ("redis_version:6.0.16", "Redis 6.0.16 at here"),
        ("redis_version:7.2.4\r\nrole:slave", "it is a replica (slave)"),
        (
            "redis_version:7.2.4\r\nrdb_last_bgsave_status:err",
            "it cannot save its snapshot, and may refuse publications",
        ),
        (
            "redis_version:7.2.4\r\naof_enabled:1\r\naof_last_write_status:err",
            "it cannot write its append-only file",
        ),
        (
            "redis_version:7.2.4\r\nmaxclients:10\r\nconnected_clients:9",
            "9 of 10 connections are taken",
        ),
    ],
)
async def test_servers_that_a_test_cannot_start(info: str, wrong: str) -> None:
    findings = await inspect_redis(asking(info), "here")
    assert [each.text for each in findings if not each.ok] == [wrong]
    assert all(each.advice for each in findings if not each.ok)


async def test_a_cluster_has_to_be_newer() -> None:
    assert (await inspect_redis(asking("redis_version:6.2.0"), "here"))[0].ok
    assert not (await inspect_redis(asking("redis_version:6.2.0"), "here", is_cluster=True))[0].ok


# PostgreSQL


@pytest.fixture
def user(postgres: PostgresServer) -> Iterator[str]:
    """The URL of a user with no right but to connect."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS test_doctor CASCADE")
        connection.execute("CREATE USER doctor PASSWORD 's3cret'")
        yield postgres.url.replace("postgres@", "doctor:s3cret@")
        connection.execute("DROP SCHEMA IF EXISTS test_doctor CASCADE")
        connection.execute("DROP OWNED BY doctor")
        connection.execute("DROP USER doctor")


def test_a_user_who_may_not_make_the_schema(user: str) -> None:
    out = problems(user, "--namespace", "test_doctor")
    assert "doctor may not create the schema 'test_doctor'" in out
    assert 'GRANT CREATE ON DATABASE "postgres" TO "doctor"' in out


def test_a_user_who_may_not_use_the_schema(postgres: PostgresServer, user: str) -> None:
    doctor(postgres.url, "--namespace", "test_doctor")
    out = problems(user, "--namespace", "test_doctor")
    assert "permission denied" in out
    assert "  → As the owner of the schema, give the user rights on it" in out
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("GRANT USAGE ON SCHEMA test_doctor TO doctor")
        connection.execute("GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA test_doctor TO doctor")
        out = problems(user, "--namespace", "test_doctor")
        assert "✗ doctor may not use all tables of the schema 'test_doctor': keys, " in out
        # The advice is enough.
        (advice,) = [line for line in out.splitlines() if "As postgres: " in line]
        connection.execute(advice.partition("As postgres: ")[2])
    out = doctor(user, "--namespace", "test_doctor")[1]
    assert "✓ doctor may use the schema 'test_doctor', which is postgres's" in out
    assert "✓ a message with an idempotency key is published once" in out


def test_a_database_that_is_missing(postgres: PostgresServer) -> None:
    out = problems(postgres.url.removesuffix("/postgres") + "/nowhere")
    assert 'database "nowhere" does not exist' in out
    assert "  → Create it with CREATE DATABASE" in out


class Row:
    """A connection to a database with these settings."""

    def __init__(self, **settings: object) -> None:
        self.settings = {
            "version": "17.1",
            "number": 170_001,
            "encoding": "UTF8",
            "fsync": "on",
            "full_page_writes": "on",
            "synchronous_commit": "on",
            "max_connections": 100,
            "reserved": 3,
            "connections": 5,
            "is_standby": False,
            "user": "app",
            "owner": "app",
            "is_owner": True,
            "forbidden": None,
            **settings,
        }

    async def fetchrow(self, *arguments: object) -> dict[str, object]:
        return self.settings


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({}, []),
        ({"number": 120_009, "version": "12.9"}, ["PostgreSQL 12.9"]),
        ({"encoding": "SQL_ASCII"}, ["the database is encoded in SQL_ASCII"]),
        ({"is_standby": True}, ["the server is a standby"]),
        ({"connections": 90}, ["90 of 97 connections are taken; each process of an app takes up to 11"]),
        ({"full_page_writes": "off"}, ["a crash of the machine may destroy the database (full_page_writes"]),
        ({"synchronous_commit": "off"}, []),
    ],
)
async def test_databases_that_a_test_cannot_start(settings: dict[str, object], wrong: list[str]) -> None:
    findings = await inspect_postgres(Row(**settings), "hubbub", Address("postgresql://localhost"))
    found = [each for each in findings if not each.ok]
    assert len(found) == len(wrong)
    assert all(each.text.startswith(text) for each, text in zip(found, wrong, strict=True))
    assert all(each.advice for each in found)
    is_durable = any(each.text.startswith("a crash loses nothing") for each in findings)
    assert is_durable == ("off" not in settings.values())


# Engines of other packages

PIGEON = """
import asyncio
from hubbub.engines.memory import MemoryEngine

class PigeonEngine(MemoryEngine):
    across_processes = True
    def __init__(self, url, namespace):
        super().__init__("memory://", namespace)
    {method}
"""


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (
            "async def start(self, sink): raise KeyError('loft')",
            "✗ the engine could not start: KeyError: 'loft'",
        ),
        (
            "async def inspect(self): raise ValueError('no feathers')",
            "✗ the engine could not report its settings: ValueError: no feathers",
        ),
        (
            "async def start(self, sink): await asyncio.Event().wait()",
            "✗ the engine could not start within 1 s",
        ),
        # Two engines in memory do not receive each other's publications.
        (
            "pass",
            "✗ the engine could not deliver a message that another process publishes within 1 s",
        ),
    ],
)
async def test_engines_of_other_packages_are_checked_too(
    method: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "pigeon_engine.py").write_text(PIGEON.format(method=method))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pigeon_engine", raising=False)
    monkeypatch.setitem(ENGINES, "pigeon", EngineSpec("pigeon_engine:PigeonEngine"))
    monkeypatch.setattr(doctor_module, "STEP_TIMEOUT", 1.0)
    assert not await doctor_module.report(doctor_module.examine("pigeon://", "hubbub"))
    assert says in capsys.readouterr().out
