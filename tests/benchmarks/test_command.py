"""The command scripts/bench."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks.peers import PEERS
from benchmarks.report import NotInstalled, is_overwritten, versions
from tests.benchmarks.runs import MANAGER, ON_LINUX
from tests.clients import DEADLINE
from tests.uvicorn_process import ROOT

pytestmark = ON_LINUX


def test_a_server_that_is_not_installed_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert not bench.is_installed(replace(MANAGER, packages=("no-such-package",)))
    assert capsys.readouterr().out == (
        "FastAPI, ConnectionManager is left out: no-such-package is not installed.\n"
    )


def test_a_package_that_another_has_overwritten_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "victim-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: victim\nVersion: 1.0\n")
    (tmp_path / "victim.py").write_text("")
    # The digest of an empty file.
    (info / "RECORD").write_text("victim.py,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_overwritten("victim")
    is_overwritten.cache_clear()
    (tmp_path / "victim.py").write_text("import fork\n")
    with pytest.raises(NotInstalled, match="the files of victim are those of another package"):
        versions(replace(MANAGER, packages=("victim",)))


def test_without_node_its_servers_are_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert not bench.is_installed(next(peer for peer in PEERS if peer.name == "ws"))
    assert capsys.readouterr().out == "Node, ws is left out: node is not installed.\n"


@pytest.mark.benchmark
def test_a_quick_run_from_end_to_end(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    options = shlex.split("--quick --peers reference hubbub --scenarios echo --seconds 0.3 --rounds 1")
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options, "--json", results],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert re.search(r"^ +2/2 +Hubbub, hubbub run +[\d,]+ messages/s +\(\d+ s\)$", run.stdout, re.MULTILINE)
    assert re.search(r"^  Hubbub, hubbub run +[\d,]+ messages/s +\d\.\d\d x limit$", run.stdout, re.MULTILINE)
    peers = json.loads(results.read_text())["scenarios"]["echo"]["peers"]
    assert {name: len(peer["rounds"]) for name, peer in peers.items()} == {"reference": 1, "hubbub": 1}


@pytest.mark.parametrize("option", ["--rounds=0", "--seconds=-1", "--seconds=fast"])
def test_options_that_are_not_positive_are_errors(
    option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", option])
    with pytest.raises(SystemExit):
        bench.parse()
    assert "invalid positive" in capsys.readouterr().err
