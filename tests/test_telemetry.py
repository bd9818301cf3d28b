"""The metrics of a hub in FastAPI's telemetry, with OpenTelemetry's SDK."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
from typing import Any

import fastapi
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from hubbub import Hub
from hubbub.engines.memory import MemoryEngine
from hubbub.metrics import telemetry
from hubbub.metrics.catalogue import HANDLER_SECONDS, METRICS
from hubbub.metrics.measured import Measured
from hubbub.metrics.telemetry import otel_name
from hubbub.node.lifecycle import Lifecycle
from hubbub.node.node import Node
from tests.clients import DEADLINE
from tests.uvicorn_process import ROOT


class Provider:
    """A meter provider of the test's own, and a reader of it."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    def app(self, *hubs: Hub, **settings: Any) -> FastAPI:
        telemetry: Any = {"meter_provider": self.meters, **settings}
        app = FastAPI(telemetry=telemetry)
        for hub in hubs:
            app.include_router(hub.router)
        return app

    def collect(self) -> dict[str, dict[tuple[tuple[str, Any], ...], Any]]:
        """The data points of Hubbub's metrics, by name and attributes."""
        data = self.reader.get_metrics_data()
        return {
            metric.name: {
                tuple(sorted((each.attributes or {}).items())): each for each in metric.data.data_points
            }
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            if scope.scope.name == "hubbub"
            for metric in scope.metrics
        }

    def value(self, name: str, hub: str = "hubbub", **attributes: str) -> Any:
        return self.collect()[name][tuple(sorted({"hub": hub, **attributes}.items()))].value


@pytest.fixture
def provider() -> Provider:
    return Provider()


def test_each_metric_goes_to_the_provider_of_the_app(provider: Provider) -> None:
    # This pins the private attribute of FastAPI by which the provider is found.
    hub = Hub()
    with TestClient(provider.app(hub)):
        hub.publish_sync("chat", "hello")
        hub._measured.handler_seconds.observe("room:{room_id}", "publish", 0.3)
        found = provider.collect()
    names = {otel_name(each.name, each.unit) for each in METRICS} | {otel_name(HANDLER_SECONDS, "seconds")}
    assert found.keys() == names
    assert {"hubbub.connections", "hubbub.outbox", "hubbub.engine_outage", "hubbub.handler"} <= found.keys()
    (published,) = found["hubbub.published_publications"].values()
    assert (published.value, dict(published.attributes)) == (1, {"hub": "hubbub"})
    (handled,) = found["hubbub.handler"].values()
    assert (handled.count, handled.sum) == (1, pytest.approx(0.3))
    assert dict(handled.attributes) == {"hub": "hubbub", "pattern": "room:{room_id}", "kind": "publish"}
    assert {dict(key)["result"] for key in found["hubbub.recoveries"]} == {"full", "failed"}


def test_counts_are_read_again_for_each_collection(provider: Provider) -> None:
    hub = Hub()
    with TestClient(provider.app(hub)):
        for count in range(3):
            assert provider.value("hubbub.published_publications") == count
            hub.publish_sync("chat", "hello")
    # FastAPI collects once more when the app has stopped.
    assert provider.value("hubbub.published_publications") == 3
    assert provider.value("hubbub.connections") == 0


def test_an_app_that_starts_again_has_each_metric_once(
    provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    app = provider.app(hub)
    for _ in range(2):
        with TestClient(app):
            hub.publish_sync("chat", "hello")
            hub._measured.handler_seconds.observe("chat", "rpc", 1)
            assert provider.value("hubbub.published_publications") == 1
    (handled,) = provider.collect()["hubbub.handler"].values()
    assert handled.count == 2
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


def test_two_hubs_of_one_namespace_are_told_apart(provider: Provider) -> None:
    first, second, shop = Hub(), Hub(), Hub(namespace="shop")
    with TestClient(provider.app(first, second, shop)):
        for hub, count in ((first, 1), (second, 2), (shop, 3)):
            for _ in range(count):
                hub.publish_sync("chat", "hello")
        values = [
            provider.value("hubbub.published_publications", hub=name)
            for name in ("hubbub", "hubbub 2", "shop")
        ]
    assert sorted(values[:2]) == [1, 2]
    assert values[2] == 3


async def test_a_hub_that_is_gone_is_not_exported(provider: Provider) -> None:
    async def start() -> Node:
        node = Node(MemoryEngine("memory://"))
        await node.start()
        return node

    async def stop(node: Node) -> None:
        await node.stop(1012, "restart", 1)

    async with Lifecycle(start, stop) as lifecycle:
        measured = Measured("chat", lifecycle)
        telemetry.feed_telemetry(provider.app(), measured)
        assert provider.value("hubbub.connections", hub="chat") == 0
        del measured
        gc.collect()
        assert not provider.collect()


async def test_any_thread_may_collect(provider: Provider) -> None:
    hub = Hub()
    app = provider.app(hub)
    async with app.router.lifespan_context(app):
        await hub.publish("chat", "hello")
        here = provider.value("hubbub.published_publications")
        async with asyncio.timeout(DEADLINE):
            there = await asyncio.to_thread(provider.value, "hubbub.published_publications")
    assert (here, there) == (1, 1)


async def test_a_collection_does_not_wait_for_the_event_loop(provider: Provider) -> None:
    # force_flush() and shutdown() of a provider wait for the thread of its exporter, also on the event loop.
    hub = Hub()
    app = provider.app(hub)
    values: list[float] = []
    async with app.router.lifespan_context(app):
        exporter = threading.Thread(target=lambda: values.append(provider.value("hubbub.connections")))
        exporter.start()
        exporter.join(DEADLINE)
    assert values == [0]


# Where it is off


def debug_lines(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(each.message for each in caplog.records if each.name == telemetry.__name__)


def test_an_app_without_metrics_in_its_telemetry(
    provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, telemetry.__name__)
    hub = Hub()
    with TestClient(provider.app(hub, metrics=False)):
        assert not provider.collect()
    assert not hub._measured.handler_seconds.is_on
    assert debug_lines(caplog) == "The telemetry of the app has no metrics; handing none to it."


@pytest.mark.parametrize("settings", [None, {"meter_provider": NoOpMeterProvider()}])
def test_no_meter_provider(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    # This pins the class of the global provider as long as none is set.
    caplog.set_level(logging.DEBUG, telemetry.__name__)
    hub = Hub()
    app = FastAPI(telemetry=settings)
    app.include_router(hub.router)
    with TestClient(app):
        assert not hub._measured.handler_seconds.is_on
    assert debug_lines(caplog) == "No meter provider is set; handing no metrics to FastAPI's telemetry."


def test_a_fastapi_without_telemetry(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, telemetry.__name__)
    hub = Hub()
    app = FastAPI()
    app.include_router(hub.router)
    monkeypatch.delattr(fastapi, "telemetry")
    monkeypatch.setitem(sys.modules, "fastapi.telemetry", None)
    with TestClient(app):
        assert not hub._measured.handler_seconds.is_on
    assert "FastAPI has no telemetry here" in debug_lines(caplog)


async def test_settings_that_are_not_found_mean_the_global_provider(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, telemetry.__name__)
    hub = Hub()
    # As if the private attribute had another name in a later FastAPI.
    telemetry.feed_telemetry(object(), hub._measured)
    assert debug_lines(caplog).splitlines() == [
        "The telemetry settings of the app are not found; using the global meter provider.",
        "No meter provider is set; handing no metrics to FastAPI's telemetry.",
    ]


def test_a_provider_that_fails_does_not_keep_the_app_from_starting(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MeterProvider):
        def get_meter(self, *args: Any, **options: Any) -> Any:
            raise RuntimeError("no meters here")

    hub = Hub()
    app = FastAPI(telemetry={"meter_provider": Broken(shutdown_on_exit=False)})
    app.include_router(hub.router)
    with TestClient(app):
        hub.publish_sync("chat", "hello")
    (line,) = [each for each in caplog.records if each.name == telemetry.__name__]
    assert "continuing without" in line.message
    assert line.exc_info is not None


def test_the_global_provider_may_be_set_in_the_lifespan_of_the_app() -> None:
    # In another process: a global provider can be set only once.
    code = """
from contextlib import asynccontextmanager
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from hubbub import Hub
from hubbub.engines.memory import MemoryEngine

reader = InMemoryMetricReader()

@asynccontextmanager
async def lifespan(app):
    metrics.set_meter_provider(MeterProvider([reader], shutdown_on_exit=False))
    yield

hub = Hub()
app = FastAPI(lifespan=lifespan)
app.include_router(hub.router)
with TestClient(app):
    data = reader.get_metrics_data()
    scopes = [each for each in data.resource_metrics[0].scope_metrics if each.scope.name == "hubbub"]
    print(sorted(each.name for each in scopes[0].metrics)[:2])
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert run.stdout == "['hubbub.channels', 'hubbub.connections']\n", run.stderr
