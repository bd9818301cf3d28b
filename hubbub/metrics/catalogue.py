"""The catalogue of metrics: name, kind, unit and meaning of each, and the count that it reads.

Prometheus and OpenTelemetry read the same catalogue. Names follow Prometheus' conventions; OpenTelemetry has
no units and no ``_total`` in names, and the usual translation back to Prometheus adds both again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, TypeAlias

from hubbub.types import Stats

Unit: TypeAlias = Literal["", "bytes", "seconds"]


class Metric(NamedTuple):
    """A number that is read from the counts of a hub.

    :param name: in the exposition of Prometheus, without ``_total``.
    :param kind: whether it only rises (a counter), or goes up and down (a gauge).
    :param unit: the last word of the name, if that is a unit.
    :param help: one sentence.
    :param read: returns the values, each with the value of ``label``.
    :param label: the name of its label, apart from ``hub``; empty if it has none.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: Unit
    help: str
    read: Callable[[Stats], Iterable[tuple[str, float]]]
    label: str = ""

    def __str__(self) -> str:
        return f"{self.name}_total" if self.kind == "counter" else self.name


#: The histogram of handlers, which is not read from the counts. Its labels are ``pattern`` and ``kind``.
HANDLER_SECONDS = "hubbub_handler_seconds"
HANDLER_SECONDS_HELP = "Durations of the handlers of declared channels, with their dependencies."


def _one(read: Callable[[Stats], float]) -> Callable[[Stats], Iterable[tuple[str, float]]]:
    return lambda stats: [("", read(stats))]


def _results(
    full: Callable[[Stats], int], failed: Callable[[Stats], int]
) -> Callable[[Stats], Iterable[tuple[str, float]]]:
    return lambda stats: [("full", full(stats)), ("failed", failed(stats))]


METRICS = (
    Metric(
        "hubbub_connections",
        "gauge",
        "",
        "Connected clients.",
        _one(lambda stats: stats.connections),
    ),
    Metric(
        "hubbub_subscriptions",
        "gauge",
        "",
        "Subscriptions of all connections.",
        _one(lambda stats: stats.subscriptions),
    ),
    Metric(
        "hubbub_channels",
        "gauge",
        "",
        "Channels to which this process is subscribed.",
        _one(lambda stats: stats.channels),
    ),
    Metric(
        "hubbub_outbox_bytes",
        "gauge",
        "bytes",
        "Bytes that wait for slow clients.",
        _one(lambda stats: stats.backlog),
    ),
    Metric(
        "hubbub_published_publications",
        "counter",
        "",
        "Publications that this process published.",
        _one(lambda stats: stats.published),
    ),
    Metric(
        "hubbub_received_publications",
        "counter",
        "",
        "Publications that the engine handed to channels of this process.",
        _one(lambda stats: stats.received),
    ),
    Metric(
        "hubbub_deliveries",
        "counter",
        "",
        "Publications times the subscribers that they were written to.",
        _one(lambda stats: stats.delivered),
    ),
    Metric(
        "hubbub_dropped_messages",
        "counter",
        "",
        "Messages that the policies drop_oldest and latest dropped.",
        _one(lambda stats: stats.dropped),
    ),
    Metric(
        "hubbub_slow_disconnects",
        "counter",
        "",
        "Connections closed because their clients were slow.",
        _one(lambda stats: stats.slow_disconnects),
    ),
    Metric(
        "hubbub_recoveries",
        "counter",
        "",
        "Clients that resumed and got all that they had missed (full), or could not (failed).",
        _results(lambda stats: stats.recoveries, lambda stats: stats.failed_recoveries),
        "result",
    ),
    Metric(
        "hubbub_repairs",
        "counter",
        "",
        "Reads of a history that had all missing publications (full), or had not (failed).",
        _results(lambda stats: stats.repairs, lambda stats: stats.failed_repairs),
        "result",
    ),
    Metric(
        "hubbub_refusals",
        "counter",
        "",
        "Requests and messages of clients that were refused.",
        lambda stats: stats.refused.items(),
        "reason",
    ),
    Metric(
        "hubbub_engine_up",
        "gauge",
        "",
        "1 while the engine is connected, 0 during an outage.",
        _one(lambda stats: 0 if stats.engine_outage_seconds > 0 else 1),
    ),
    Metric(
        "hubbub_engine_outages",
        "counter",
        "",
        "Outages of the engine.",
        _one(lambda stats: stats.engine_outages),
    ),
    Metric(
        "hubbub_engine_outage_seconds",
        "counter",
        "seconds",
        "Seconds of all outages of the engine, the present one included.",
        _one(lambda stats: stats.all_outage_seconds),
    ),
)
