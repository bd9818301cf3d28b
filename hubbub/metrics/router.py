"""The router of metrics: ``GET /metrics``, for Prometheus to scrape."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from fastapi import APIRouter, Response
from fastapi.routing import iter_route_contexts

from hubbub.exceptions import MissingExtra
from hubbub.metrics.measured import Measured

if TYPE_CHECKING:
    from hubbub.metrics.prometheus import HubCollector

PATH = "/metrics"

#: The collector of every router in this process. ``hubbub run`` looks here for apps that are scraped.
collectors: WeakSet[HubCollector] = WeakSet()


class MetricsRouter(APIRouter):
    """The router of :attr:`hubbub.Hub.metrics`.

    :param measured: the hub.
    :raises MissingExtra: the package ``prometheus-client`` is not installed.
    """

    def __init__(self, measured: Measured) -> None:
        try:
            # Here, because it is an extra: an application without metrics does not need it.
            from hubbub.metrics.prometheus import CONTENT_TYPE, HubCollector, exposition
        except ModuleNotFoundError as exc:
            if (exc.name or "").partition(".")[0] == "hubbub":
                raise
            raise MissingExtra(
                f"The metrics of a hub need the package {exc.name!r}, which is not installed. "
                'Install it with: pip install "hubbub[metrics]"'
            ) from exc
        super().__init__(lifespan=self._lifespan)
        #: For a registry of the application's own: ``REGISTRY.register(hub.metrics.collector)``.
        self.collector: HubCollector = HubCollector(measured)
        # Durations of handlers are observed from now on.
        measured.handler_seconds.is_on = True

        async def metrics() -> Response:
            if not measured.is_running:
                # Prometheus shows the target as down, with this status.
                return Response("The hub does not run.\n", 503, media_type="text/plain")
            # With tens of thousands of connections this takes a tenth of a second, which other clients must
            # not wait for. And not among the threads of 'def' endpoints, which may all be busy.
            text = await asyncio.to_thread(exposition, self.collector)
            return Response(text, headers={"Content-Type": CONTENT_TYPE})

        self._endpoint = metrics
        self.add_api_route(PATH, metrics, methods=["GET"], include_in_schema=False)
        collectors.add(self.collector)

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        self._check_path(app)
        yield

    def _check_path(self, app: Any) -> None:
        """Refuse to start an app in which another route answers in place of this one.

        :raises RuntimeError: an earlier route has the same path.
        """
        earlier: set[str | None] = set()
        for route in iter_route_contexts(getattr(app, "routes", ())):
            if route.endpoint is self._endpoint and route.path in earlier:
                raise RuntimeError(
                    f"Expected one route for GET {route.path}, but got hub.metrics behind another one, which "
                    "would answer in its place. Give one of them another path, such as "
                    'app.include_router(hub.metrics, prefix="/chat").'
                )
            if "GET" in (route.methods or ()):
                earlier.add(route.path)
