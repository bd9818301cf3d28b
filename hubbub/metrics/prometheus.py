"""Prometheus: the metrics of a hub in the formats of ``prometheus-client``, which is an extra."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from hubbub.channels.handler_seconds import BOUNDS
from hubbub.metrics.catalogue import HANDLER_SECONDS, HANDLER_SECONDS_HELP, METRICS
from hubbub.metrics.measured import Measured
from hubbub.types import Stats

#: The version of the text format that every Prometheus reads. Names here need no quotes of a later one.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BOUNDS = [*(str(bound) for bound in BOUNDS), "+Inf"]


class HubCollector(Collector):
    """Reads the counts of a hub when it is scraped. Nothing is kept up to date between two scrapes.

    A hub that does not run has no samples.
    """

    def __init__(self, measured: Measured) -> None:
        self._measured = measured

    def describe(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        """Return the metrics without samples, by which a registry refuses a second collector."""
        return self._families(None)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        return self._families(self._measured.read())

    def _families(
        self, stats: Stats | None
    ) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        for metric in METRICS:
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            labels = ["hub", metric.label] if metric.label else ["hub"]
            family = kind(metric.name, metric.help, labels=labels, unit=metric.unit)
            for label, value in metric.read(stats) if stats is not None else ():
                family.add_metric(
                    [self._measured.name, label] if metric.label else [self._measured.name], value
                )
            yield family
        yield self._handler_seconds(has_samples=stats is not None)

    def _handler_seconds(self, *, has_samples: bool) -> HistogramMetricFamily:
        family = HistogramMetricFamily(
            HANDLER_SECONDS, HANDLER_SECONDS_HELP, labels=["hub", "pattern", "kind"], unit="seconds"
        )
        for (pattern, kind), durations in self._measured.handler_seconds.items() if has_samples else ():
            buckets = list(zip(_BOUNDS, accumulate(durations.buckets), strict=True))
            family.add_metric([self._measured.name, pattern, kind], buckets, durations.seconds)
        return family


def exposition(collector: HubCollector) -> bytes:
    """Return the metrics of one collector in the text format."""
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry)
