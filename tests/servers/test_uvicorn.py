"""uvicorn's own tests of its protocols pass with our protocols."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

#: uvicorn's classes, and the tests of each: their file, the class's name there, and a lower bound of their
#: number.
PROTOCOLS = [
    (
        "uvicorn.protocols.websockets.websockets_sansio_impl:WebSocketsSansIOProtocol",
        ("test_websocket.py", "websockets-sansio", 100),
    ),
    ("uvicorn.protocols.http.httptools_impl:HttpToolsProtocol", ("test_http.py", "httptools", 80)),
]

#: Without our plugins, which uvicorn's configuration does not expect.
PYTEST_OPTIONS = ("-p", "no:asyncio", "-p", "no:cacheprovider")

# The tests distinguish uvicorn's classes by these names.
UNDER_TEST = """
from hubbub.servers.http import HubHTTPProtocol
from hubbub.servers.uvicorn import HubProtocol

class WebSocketsSansIOProtocol(HubProtocol):
    pass

class HttpToolsProtocol(HubHTTPProtocol):
    pass
"""


@pytest.fixture(scope="module")
def uvicorns_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests of the installed uvicorn, from its source distribution, with our classes."""
    tmp_path = tmp_path_factory.mktemp("uvicorn")
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
            # Without the package itself: the installed one is tested.
            if content is not None and not path.is_relative_to(folder / "uvicorn"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
    conftest = folder / "tests" / "conftest.py"
    text = conftest.read_text()
    for theirs, _ in PROTOCOLS:
        assert theirs in text
        text = text.replace(theirs, f"hub_under_test:{theirs.partition(':')[2]}")
    conftest.write_text(text)
    (folder / "hub_under_test.py").write_text(UNDER_TEST)
    return folder


@pytest.mark.parametrize(("file", "name", "count"), [tests for _, tests in PROTOCOLS])
def test_uvicorns_own_tests_pass(uvicorns_tests: Path, file: str, name: str, count: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *PYTEST_OPTIONS, "-k", name, f"tests/protocols/{file}"],
        cwd=uvicorns_tests,
        env={**os.environ, "PYTHONPATH": str(uvicorns_tests)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > count
