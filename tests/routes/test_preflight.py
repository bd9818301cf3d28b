"""CORS headers and preflight requests, with and without a ``CORSMiddleware`` of the app."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException
from starlette.requests import Request

from hubbub.node.refusals import Refusals
from hubbub.routes.preflight import cors_headers, preflight, with_cors
from hubbub.security.admission import Admission
from hubbub.security.origins import parse_origins
from tests.apps.crossing import PAGE, application
from tests.clients import http_client
from tests.uvicorn_process import ROOT, serve

APPS = ["plain", "with_middleware", "for_other_pages", "within_middleware"]
ALLOW = "Access-Control-Allow-"


def request(origin: str | None) -> Request:
    headers = [(b"host", b"api.example.com")]
    if origin is not None:
        headers.append((b"origin", origin.encode()))
    return Request({"type": "http", "method": "GET", "path": "/", "headers": headers})


def headers_for(origin: str | None, *origins: str) -> dict[str, str]:
    return cors_headers(request(origin), Admission(parse_origins(origins), None))


def test_a_named_page_may_read_with_credentials() -> None:
    assert headers_for(PAGE, PAGE) == {
        "Vary": "Origin",
        f"{ALLOW}Origin": PAGE,
        f"{ALLOW}Credentials": "true",
    }


def test_the_origin_is_answered_as_the_browser_wrote_it() -> None:
    assert headers_for("https://APP.example.com:443", PAGE)[f"{ALLOW}Origin"] == "https://APP.example.com:443"
    assert headers_for("null", "null")[f"{ALLOW}Origin"] == "null"


def test_a_star_is_without_credentials() -> None:
    assert headers_for(PAGE, "*") == {f"{ALLOW}Origin": "*"}
    # A page may be named beside the star.
    assert headers_for(PAGE, "*", PAGE)[f"{ALLOW}Credentials"] == "true"
    assert headers_for("https://evil.example", "*", PAGE) == {"Vary": "Origin", f"{ALLOW}Origin": "*"}


@pytest.mark.parametrize("origin", [None, "https://evil.example", "https://api.example.com", "null", "*", ""])
def test_other_pages_may_not_read(origin: str | None) -> None:
    assert headers_for(origin, PAGE) == {"Vary": "Origin"}
    assert headers_for(origin) == {}


def test_a_refusal_that_is_raised_again_has_the_headers_of_each_page() -> None:
    class Closed(HTTPException):
        pass

    reused = Closed(status_code=404, detail="closed", headers={"X-Reason": "closed"})
    admission = Admission(parse_origins([PAGE, "https://other.example.com"]), None)
    for origin in (PAGE, "https://other.example.com", "https://evil.example"):
        copied = with_cors(reused, request(origin), admission)
        assert isinstance(copied, Closed)
        assert (copied.status_code, copied.detail) == (404, "closed")
        assert copied.headers == {"X-Reason": "closed", **cors_headers(request(origin), admission)}
    assert reused.headers == {"X-Reason": "closed"}


def test_refused_preflights_are_counted() -> None:
    refusals = Refusals()
    with pytest.raises(HTTPException) as refused:
        preflight(request(None), Admission(parse_origins([PAGE]), None), refusals)
    assert (refused.value.status_code, refused.value.headers) == (403, {"Vary": "Origin"})
    assert refusals.counts()["origin"] == 1


def asks(client: TestClient, origin: str | None, **headers: str) -> httpx2.Response:
    sent = {"Access-Control-Request-Method": "POST", **headers}
    if origin is not None:
        sent["Origin"] = origin
    return client.options("/channels/room%2F1", headers=sent)


def test_a_preflight_names_the_methods_and_headers_of_the_doors() -> None:
    with TestClient(application(PAGE)) as client:
        answer = asks(client, PAGE)
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers[f"{ALLOW}Methods"] == "GET, POST"
        assert answer.headers[f"{ALLOW}Headers"] == "Authorization, Content-Type, Last-Event-ID"
        assert answer.headers["Access-Control-Max-Age"] == "600"
        assert answer.headers[f"{ALLOW}Origin"] == PAGE
        assert answer.headers[f"{ALLOW}Credentials"] == "true"
        assert answer.headers["Vary"] == "Origin"
        assert client.get("/").json() == {}


@pytest.mark.parametrize(
    ("origin", "reason"),
    [
        ("https://evil.example", "origin"),
        ("null", "origin"),
        ("http://testserver", "origin"),
        (None, "origin"),
    ],
)
def test_a_preflight_of_another_page_gets_403(origin: str | None, reason: str) -> None:
    with TestClient(application(PAGE)) as client:
        answer = asks(client, origin)
        assert answer.status_code == 403
        assert list(answer.json()) == ["detail"]
        assert not [name for name in answer.headers if name.startswith("access-control-allow")]
        assert client.get("/").json() == {reason: 1}


def test_a_preflight_for_another_host_gets_403() -> None:
    with TestClient(application(PAGE)) as client:
        assert asks(client, PAGE, Host="evil.example").status_code == 403
        assert client.get("/").json() == {"host": 1}


@pytest.mark.parametrize("app", APPS)
@pytest.mark.parametrize("name", ["hubbub run", "uvicorn"])
async def test_no_header_is_doubled_by_a_middleware_of_the_app(name: str, app: str, log: Path) -> None:
    async with (
        serve(f"tests.apps.crossing:{app}", log, command=name, cwd=ROOT) as server,
        http_client(base_url=server.http) as http,
    ):
        page = {"Origin": PAGE}
        for answer, status in [
            (await http.get("/channels/a/b", headers=page), 200),
            (await http.get("/channels/closed", headers=page), 404),
            (await http.post("/channels/a/b", headers=page), 200),
        ]:
            assert answer.status_code == status
            assert answer.headers.get_list(f"{ALLOW}Origin") == [PAGE]
            assert answer.headers.get_list(f"{ALLOW}Credentials") == ["true"]
            vary = answer.headers.get_list("Vary")
            # A middleware around the app is not to be found; it adds to the value.
            assert vary == (["Origin, Origin"] if app == "within_middleware" else ["Origin"])
        answer = await http.get("/channels/closed", headers=page)
        assert (answer.json(), answer.headers["X-Reason"]) == ({"detail": "no such channel"}, "closed")
        asked = {**page, "Access-Control-Request-Method": "POST"}
        answer = await http.options("/channels/a", headers=asked)
        if app == "for_other_pages":
            # Such a middleware answers preflights itself: it has to name the page as well.
            assert answer.status_code == 400
        else:
            assert answer.status_code in (200, 204)
            assert answer.headers.get_list(f"{ALLOW}Origin") == [PAGE]
            assert "POST" in answer.headers[f"{ALLOW}Methods"]
        answer = await http.get("/channels/a", headers={"Origin": "https://evil.example"})
        assert answer.status_code == 403
        assert f"{ALLOW}Origin" not in answer.headers
    assert "Traceback" not in server.log
