"""``GET /metrics``: the counts of a hub for Prometheus."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import get_args

import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from pydantic import BaseModel
from starlette.testclient import WebSocketDenialResponse

from hubbub import Denied, Hub, MissingExtra
from hubbub.channels.handler_seconds import HandlerSeconds
from hubbub.metrics.catalogue import HANDLER_SECONDS, METRICS
from hubbub.types import Refusal
from tests.clients import DEADLINE, connect, connect_deaf, eventually, http_client, receive
from tests.uvicorn_process import ROOT, Server, serve

PAGE = (ROOT / "docs" / "metrics.md").read_text()
TOKEN = {"METRICS_TOKEN": "a-token"}


def samples(text: str) -> dict[str, float]:
    """The samples of an exposition, by name and labels as Prometheus writes them, without the label hub."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels["hub"] == "hubbub"
            found[_key(sample)] = sample.value
    return found


def _key(sample: Sample) -> str:
    labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()) if name != "hub")
    return f"{sample.name}{{{labels}}}" if labels else sample.name


def app_with(*hubs: Hub) -> FastAPI:
    app = FastAPI()
    for hub in hubs:
        app.include_router(hub.router)
    return app


def measure(hub: Hub, pattern: str, *seconds: float) -> None:
    """Observe durations as the handlers of ``hub`` would."""
    for each in seconds:
        hub._measured.handler_seconds.observe(pattern, "publish", each)


# The page


def documented() -> list[tuple[str, str, list[str]]]:
    """Name, kind and labels of each metric in docs/metrics.md."""
    rows = re.findall(r"^\| `(hubbub_\w+)` \| (\w+) \|(.*?)\| .+ \|$", PAGE, flags=re.MULTILINE)
    return [(name, kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels in rows]


def test_the_page_documents_each_metric() -> None:
    catalogue = [(str(each), each.kind, [each.label] if each.label else []) for each in METRICS]
    assert documented() == [*catalogue, (HANDLER_SECONDS, "histogram", ["pattern", "kind"])]


def test_what_is_exported_is_what_the_page_documents() -> None:
    hub = Hub()
    app = app_with(hub)
    app.include_router(hub.metrics)
    measure(hub, "room:{room_id}", 0.1)
    with TestClient(app) as client:
        text = client.get("/metrics").text
    # Counters are declared by the names of their samples in this format.
    exported = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, flags=re.MULTILINE))
    assert exported == {name: kind for name, kind, _ in documented()}
    labels = {name: set(labels) for name, _, labels in documented()}
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert {re.sub("_(bucket|count|sum)$", "", each.name) for each in found} == labels.keys()
    for each in found:
        name = re.sub("_(bucket|count|sum)$", "", each.name)
        assert each.labels.keys() - {"hub", "le"} == labels[name]


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_names_follow_the_conventions_of_prometheus(metric: object) -> None:
    name = str(metric)
    assert re.fullmatch("hubbub(_[a-z]+)+", name)
    (found,) = [each for each in METRICS if str(each) == name]
    assert found.name.endswith(f"_{found.unit}" if found.unit else "")
    assert name.endswith("_total") == (found.kind == "counter")
    assert found.help.endswith(".")


# The route


def test_the_route_is_not_in_the_openapi_document() -> None:
    hub = Hub()
    app = app_with(hub)
    app.include_router(hub.metrics)
    assert "/metrics" not in app.openapi()["paths"]


def test_the_router_is_one_object() -> None:
    hub = Hub()
    assert hub.metrics is hub.metrics


def test_dependencies_guard_the_route() -> None:
    def refuse() -> None:
        raise HTTPException(401)

    hub = Hub()
    app = app_with(hub)
    app.include_router(hub.metrics, dependencies=[Depends(refuse)])
    with TestClient(app) as client:
        assert client.get("/metrics").status_code == 401


def test_a_hub_that_does_not_run_is_unavailable() -> None:
    hub = Hub()
    app = FastAPI()
    app.include_router(hub.metrics)
    with TestClient(app) as client:
        answer = client.get("/metrics")
    assert (answer.status_code, answer.text) == (503, "The hub does not run.\n")


def test_two_hubs_have_two_paths() -> None:
    chat, shop = Hub(namespace="chat"), Hub(namespace='a "shop"')
    app = app_with(chat, shop)
    app.include_router(chat.metrics)
    app.include_router(shop.metrics, prefix="/shop")
    with TestClient(app) as client:
        assert 'hubbub_connections{hub="chat"} 0.0' in client.get("/metrics").text
        assert 'hubbub_connections{hub="a \\"shop\\""} 0.0' in client.get("/shop/metrics").text


@pytest.mark.parametrize("prefix", ["", "/inner"])
def test_an_app_in_which_another_route_answers_does_not_start(prefix: str) -> None:
    first, second = Hub(), Hub()
    app, inner = app_with(first, second), APIRouter()
    inner.include_router(first.metrics)
    inner.include_router(second.metrics)
    app.include_router(inner, prefix=prefix)
    with pytest.raises(RuntimeError, match=f"route for GET {prefix}/metrics"), TestClient(app):
        pass


def test_a_route_of_the_app_with_the_same_path_is_an_error_too() -> None:
    hub = Hub()
    app = app_with(hub)

    @app.get("/metrics")
    def mine() -> str:
        return "mine"

    app.include_router(hub.metrics)
    with pytest.raises(RuntimeError, match="Give one of them another path"), TestClient(app):
        pass


def test_a_route_for_another_method_is_none() -> None:
    hub = Hub()
    app = app_with(hub)

    @app.post("/metrics")
    def mine() -> str:
        return "mine"

    app.include_router(hub.metrics)
    with TestClient(app) as client:
        assert client.get("/metrics").status_code == 200


def test_without_the_extra_the_declaration_is_an_error(tmp_path: Path) -> None:
    # A package that is in the way of the real one, and fails as a missing one does.
    (tmp_path / "prometheus_client.py").write_text(
        "raise ModuleNotFoundError('No module', name='prometheus_client')"
    )
    code = (
        "from hubbub import Hub, MissingExtra\ntry: Hub().metrics\nexcept MissingExtra as exc: print(exc)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert run.stdout == (
        "The metrics of a hub need the package 'prometheus_client', which is not installed. "
        'Install it with: pip install "hubbub[metrics]"\n'
    ), run.stderr
    assert issubclass(MissingExtra, ImportError)


# Handlers


def test_durations_are_in_buckets_that_add_up() -> None:
    hub = Hub()
    app = app_with(hub)
    app.include_router(hub.metrics)
    measure(hub, "room:{room_id}", 0.001, 0.002, 0.3, 99)
    measure(hub, "news", 0.02)
    with TestClient(app) as client:
        found = samples(client.get("/metrics").text)

    def bucket(bound: str) -> float:
        return found[f"hubbub_handler_seconds_bucket{{kind=publish,le={bound},pattern=room:{{room_id}}}}"]

    assert [bucket(each) for each in ("0.001", "0.0025", "0.25", "0.5", "10.0", "+Inf")] == [1, 2, 2, 3, 3, 4]
    assert found["hubbub_handler_seconds_count{kind=publish,pattern=room:{room_id}}"] == 4
    assert found["hubbub_handler_seconds_sum{kind=publish,pattern=room:{room_id}}"] == pytest.approx(99.303)
    assert found["hubbub_handler_seconds_count{kind=publish,pattern=news}"] == 1


class Say(BaseModel):
    text: str


def hub_with_handlers() -> Hub:
    hub = Hub()
    room = hub.channel("room:{room_id}")

    @room.on_subscribe
    async def enter(room_id: int) -> None:
        if room_id == 0:
            raise Denied("not here")

    @room.on_publish
    async def say(message: Say) -> Say:
        return message

    @hub.rpc("repeat")
    async def repeat(message: Say) -> str:
        return message.text * 2

    return hub


def test_handlers_are_measured_by_their_declaration() -> None:
    hub = hub_with_handlers()
    app = app_with(hub)
    app.include_router(hub.metrics)
    with TestClient(app) as client:
        for room in (1, 2):
            with client.websocket_connect(f"/channels/room:{room}") as socket:
                socket.send_json({"text": "hello"})
                assert socket.receive_json() == {"text": "hello"}
                socket.send_json({"type": "rpc", "id": 7, "method": "repeat", "data": {"text": "ho"}})
                assert socket.receive_json() == {"type": "reply", "id": 7, "data": "hoho"}
                # Neither is declared.
                socket.send_json({"type": "rpc", "id": 8, "method": "rep", "data": 21})
                assert socket.receive_json()["type"] == "error"
                with pytest.raises(WebSocketDenialResponse), client.websocket_connect("/channels/other:1"):
                    pass
        with pytest.raises(WebSocketDenialResponse), client.websocket_connect("/channels/room:0"):
            pass
        found = samples(client.get("/metrics").text)
    calls = {name: value for name, value in found.items() if name.startswith("hubbub_handler_seconds_count")}
    assert calls == {
        "hubbub_handler_seconds_count{kind=subscribe,pattern=room:{room_id}}": 3,
        "hubbub_handler_seconds_count{kind=publish,pattern=room:{room_id}}": 2,
        "hubbub_handler_seconds_count{kind=rpc,pattern=repeat}": 2,
    }
    assert found["hubbub_published_publications_total"] == 2
    refused = {name: value for name, value in found.items() if "_refusals_" in name and value}
    assert refused == {
        "hubbub_refusals_total{reason=forbidden}": 1,
        "hubbub_refusals_total{reason=unknown_channel}": 2,
        "hubbub_refusals_total{reason=bad_request}": 2,
    }


def test_each_reason_of_a_refusal_has_a_sample_from_the_beginning() -> None:
    hub = Hub()
    app = app_with(hub)
    app.include_router(hub.metrics)
    with TestClient(app) as client:
        found = samples(client.get("/metrics").text)
    names = {name for name in found if "_refusals_" in name}
    assert names == {f"hubbub_refusals_total{{reason={reason}}}" for reason in get_args(Refusal)}


def test_durations_are_observed_only_for_metrics() -> None:
    hub = Hub()
    assert not hub._measured.handler_seconds.is_on
    assert hub.metrics
    assert hub._measured.handler_seconds.is_on


def test_a_recorder_gets_each_further_duration() -> None:
    seconds, recorded = HandlerSeconds(), []
    seconds.observe("chat", "rpc", 1)
    seconds.add_recorder(lambda *duration: recorded.append(duration))
    seconds.observe("chat", "subscribe", 2)
    assert seconds.is_on
    assert recorded == [("chat", "subscribe", 2)]


# A registry of the application's own


async def test_any_thread_may_collect() -> None:
    hub, registry = Hub(), CollectorRegistry()
    registry.register(hub.metrics.collector)
    assert registry.get_sample_value("hubbub_connections", {"hub": "hubbub"}) is None
    threads: list[threading.Thread] = []

    def collect() -> float | None:
        threads.append(threading.current_thread())
        return registry.get_sample_value("hubbub_published_publications_total", {"hub": "hubbub"})

    async with hub:
        await hub.publish("chat", "hello")
        async with asyncio.timeout(DEADLINE):
            assert await asyncio.to_thread(collect) == 1
    assert threads != [threading.current_thread()]
    # A hub that has stopped has no samples.
    assert collect() is None


def test_a_registry_refuses_a_second_hub() -> None:
    registry = CollectorRegistry()
    registry.register(Hub().metrics.collector)
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(Hub().metrics.collector)


# Real servers


async def scrape(server: Server) -> dict[str, float]:
    async with http_client(base_url=server.http, headers={"Authorization": "Bearer a-token"}) as http:
        answer = await http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return samples(answer.text)


@pytest.mark.parametrize("command", ["hubbub run", "uvicorn"])
async def test_a_server_is_scraped(log: Path, command: str) -> None:
    async with serve("metrics:app", log, command=command, probe="/docs", env=TOKEN) as server:
        async with http_client(base_url=server.http) as http:
            assert (await http.get("/metrics")).status_code == 401
            wrong = {"Authorization": "Bearer wrong"}
            assert (await http.get("/metrics", headers=wrong)).status_code == 401
        async with connect(f"{server.ws}/ws") as ann, connect(f"{server.ws}/ws") as bob:

            async def have_joined() -> bool:
                return (await scrape(server))["hubbub_subscriptions"] == 2

            await eventually(have_joined)
            await ann.send("hello")
            for client in (ann, bob):
                assert await receive(client) == "hello"
            found = await scrape(server)
        counted = {
            "hubbub_connections": 2,
            "hubbub_subscriptions": 2,
            "hubbub_channels": 1,
            "hubbub_outbox_bytes": 0,
            "hubbub_published_publications_total": 1,
            "hubbub_received_publications_total": 1,
            "hubbub_deliveries_total": 2,
            "hubbub_dropped_messages_total": 0,
            "hubbub_slow_disconnects_total": 0,
            "hubbub_recoveries_total{result=full}": 0,
            "hubbub_recoveries_total{result=failed}": 0,
            "hubbub_repairs_total{result=full}": 0,
            "hubbub_repairs_total{result=failed}": 0,
            "hubbub_engine_up": 1,
            "hubbub_engine_outages_total": 0,
            "hubbub_engine_outage_seconds_total": 0,
        }
        assert {name: found[name] for name in counted} == counted
        assert "a-token" not in server.log


async def test_several_workers_are_warned_of(log: Path, tmp_path: Path) -> None:
    (tmp_path / "shared.py").write_text(
        "from fastapi import FastAPI\n"
        "from hubbub import Hub\n"
        "hub = Hub('sqlite:///hub.db')\n"
        "app = FastAPI()\n"
        "app.include_router(hub.router)\n"
        "app.include_router(hub.metrics)\n"
    )
    warning = "Warning: a scrape of hub.metrics reaches one of the 2 workers"
    async with serve("shared:app", log, cwd=tmp_path, probe="/docs", args=["--workers", "2"]) as server:
        assert server.log.count(warning) == 1
        assert (await scrape(server))["hubbub_engine_up"] == 1
    other_log = tmp_path / "other.log"
    async with serve("shared:app", other_log, cwd=tmp_path, probe="/docs") as server:
        assert "Warning" not in server.log


async def test_bytes_wait_for_a_slow_client(log: Path) -> None:
    async with (
        serve("metrics:app", log, probe="/docs", env=TOKEN) as server,
        connect(f"{server.ws}/ws") as speaker,
    ):
        joining = asyncio.create_task(connect_deaf(f"{server.ws}/ws"))
        while not joining.done():
            # The deaf client reads its first message, when it has subscribed.
            await speaker.send("hello")
            await asyncio.wait([joining], timeout=0.05)
        deaf = joining.result()
        seen: set[str] = set()

        async def is_slow() -> bool:
            await speaker.send("x" * 100_000)
            found = await scrape(server)
            seen.update(name for name, value in found.items() if value > 0)
            return found["hubbub_slow_disconnects_total"] == 1

        try:
            await eventually(is_slow)
        finally:
            deaf.transport.abort()
        assert "hubbub_outbox_bytes" in seen
