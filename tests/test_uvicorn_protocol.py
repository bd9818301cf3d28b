"""HubProtocol is uvicorn's WebSocket protocol in every respect: uvicorn's own tests of it pass."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

OURS = "hub_under_test:WebSocketsSansIOProtocol"
THEIRS = "uvicorn.protocols.websockets.websockets_sansio_impl:WebSocketsSansIOProtocol"

#: Without the plugins of ours that their configuration does not expect, and without their other classes.
PYTEST_OPTIONS = ("-p", "no:asyncio", "-p", "no:cacheprovider", "-k", "websockets-sansio")

# By this name the tests know what they may expect of uvicorn's own class.
UNDER_TEST = """
from hubbub.servers.uvicorn import HubProtocol

class WebSocketsSansIOProtocol(HubProtocol):
    pass
"""


@pytest.fixture
def uvicorns_tests(tmp_path: Path) -> Path:
    """The tests in the source distribution of the uvicorn that is installed, with our class for theirs."""
    requirement = f"uvicorn=={version('uvicorn')}"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "download", "--no-deps", "--no-binary", ":all:", "--dest", tmp_path, requirement], check=True
    )
    (archive,) = tmp_path.glob("uvicorn-*.tar.gz")
    with tarfile.open(archive) as source:
        folder = tmp_path / archive.name.removesuffix(".tar.gz")
        for member in source.getmembers():
            path = tmp_path / member.name
            content = source.extractfile(member)
            # Without the package itself: the one that is installed is tested.
            if content is not None and not path.is_relative_to(folder / "uvicorn"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
    conftest = folder / "tests" / "conftest.py"
    text = conftest.read_text()
    assert THEIRS in text
    conftest.write_text(text.replace(THEIRS, OURS))
    (folder / "hub_under_test.py").write_text(UNDER_TEST)
    return folder


def test_uvicorns_own_tests_pass(uvicorns_tests: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *PYTEST_OPTIONS, "tests/protocols/test_websocket.py"],
        cwd=uvicorns_tests,
        env={**os.environ, "PYTHONPATH": str(uvicorns_tests)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 100
