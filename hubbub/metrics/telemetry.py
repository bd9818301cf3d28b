"""FastAPI's telemetry: the metrics of a hub go to the meter provider of its app.

FastAPI exports through OpenTelemetry's API. Its provider is the one in ``FastAPI(telemetry={"meter_provider":
…})``, or else the global one, which :func:`opentelemetry.metrics.get_meter_provider` returns. The settings of
an app have no public attribute: this is the one module that reads the private one. Without it the global
provider is used, which is public.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from hubbub.channels.handler_seconds import BOUNDS, HandlerKind
from hubbub.metrics.catalogue import HANDLER_SECONDS, HANDLER_SECONDS_HELP, METRICS, Metric
from hubbub.metrics.measured import Measured
from hubbub.types import Stats

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

logger = logging.getLogger(__name__)

#: The name of the meter (OpenTelemetry's "instrumentation scope").
SCOPE = "hubbub"

#: OpenTelemetry's names of units (UCUM).
UNITS = {"": "", "bytes": "By", "seconds": "s"}


def feed_telemetry(app: Any, measured: Measured) -> None:
    """Hand the metrics of a hub to the telemetry of ``app``, if that is on.

    It is off if ``FastAPI(telemetry={"metrics": False})`` says so, as long as the application has set no
    meter provider, and in a FastAPI without telemetry. Later calls for the same provider have no effect.
    """
    try:
        provider = _provider(app)
        if provider is None:
            return
        instruments = _instruments.get(provider)
        if instruments is None:
            instruments = _instruments[provider] = _Instruments(provider.get_meter(SCOPE))
        instruments.add(measured)
    except Exception:
        # Telemetry is optional: a provider that fails must not keep the app from starting.
        logger.exception("Could not hand metrics to FastAPI's telemetry; continuing without.")


def otel_name(name: str, unit: str) -> str:
    """Return the name of a metric as OpenTelemetry has it, without its unit."""
    return name.removesuffix(f"_{unit}").replace("_", ".", 1)


def _provider(app: Any) -> MeterProvider | None:
    """Return the meter provider of ``app``; ``None`` if its telemetry is off."""
    try:
        import fastapi.telemetry  # noqa: F401
        from opentelemetry import metrics
    except ImportError as exc:
        logger.debug("FastAPI has no telemetry here (%s); handing no metrics to it.", exc)
        return None
    config = getattr(app, "_telemetry", None)
    if not isinstance(config, Mapping):
        logger.debug("The telemetry settings of the app are not found; using the global meter provider.")
        config = {}
    if not config.get("metrics", True):
        logger.debug("The telemetry of the app has no metrics; handing none to it.")
        return None
    provider: MeterProvider | None = config.get("meter_provider")
    if provider is None:
        provider = metrics.get_meter_provider()
    if isinstance(provider, metrics.NoOpMeterProvider) or _is_deferred(provider):
        logger.debug("No meter provider is set; handing no metrics to FastAPI's telemetry.")
        return None
    return provider


def _is_deferred(provider: MeterProvider) -> bool:
    """Return whether ``provider`` stands in for one that has not been set.

    The API has no public question for that. FastAPI asks in the same way. Should the class get another name,
    instruments are made that have no reader: that costs a little, and is not wrong.
    """
    return type(provider).__name__ == "_ProxyMeterProvider"


class _Instruments:
    """The instruments in one provider, for all hubs of this process.

    A provider keeps its instruments for ever, and takes one callback for each name. So they belong to the
    provider, and refer to hubs weakly.
    """

    def __init__(self, meter: Meter) -> None:
        self._snapshots: WeakKeyDictionary[Measured, _Snapshot] = WeakKeyDictionary()
        # Hubs start on event loops; exporters collect in their threads.
        self._lock = Lock()
        for metric in METRICS:
            create = (
                meter.create_observable_counter if metric.kind == "counter" else meter.create_observable_gauge
            )
            create(
                otel_name(metric.name, metric.unit),
                callbacks=[self._observe(metric)],
                unit=UNITS[metric.unit],
                description=metric.help,
            )
        self._durations = meter.create_histogram(
            otel_name(HANDLER_SECONDS, "seconds"),
            unit="s",
            description=HANDLER_SECONDS_HELP,
            explicit_bucket_boundaries_advisory=BOUNDS,
        )

    def add(self, measured: Measured) -> None:
        """Export the metrics of ``measured`` from now on, for as long as it exists."""
        with self._lock:
            if measured in self._snapshots:
                return
            names = {snapshot.name for snapshot in self._snapshots.values()}
            name, number = measured.name, 1
            while name in names:
                # Another hub of this process has the same namespace, on another engine.
                number += 1
                name = f"{measured.name} {number}"
            self._snapshots[measured] = _Snapshot(name)
        durations = self._durations

        def record(pattern: str, kind: HandlerKind, seconds: float) -> None:
            durations.record(seconds, {"hub": name, "pattern": pattern, "kind": kind})

        measured.handler_seconds.add_recorder(record)

    def _observe(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        from opentelemetry.metrics import Observation

        def callback(options: CallbackOptions) -> Iterable[Observation]:
            with self._lock:
                snapshots = list(self._snapshots.items())
            for measured, snapshot in snapshots:
                if (stats := snapshot.read(measured, metric)) is None:
                    continue
                for label, value in metric.read(stats):
                    labels = {metric.label: label} if metric.label else {}
                    yield Observation(value, {"hub": snapshot.name, **labels})

        return callback


class _Snapshot:
    """The counts of one hub, read once for all metrics of a collection.

    A provider calls back for each metric on its own. The counts are read again as soon as a metric asks for
    the second time. Those of a hub that has stopped stay as they were in the end.
    """

    def __init__(self, name: str) -> None:
        #: The value of the label ``hub``.
        self.name = name
        self._stats: Stats | None = None
        self._given: set[str] = set()
        # A provider may have several readers, each with a thread.
        self._lock = Lock()

    def read(self, measured: Measured, metric: Metric) -> Stats | None:
        """Return the counts for ``metric``; ``None`` if the hub has never run."""
        with self._lock:
            if self._given and metric.name not in self._given:
                self._given.add(metric.name)
                return self._stats
            self._stats, self._given = measured.read() or measured.final, {metric.name}
            return self._stats


_instruments: WeakKeyDictionary[MeterProvider, _Instruments] = WeakKeyDictionary()
