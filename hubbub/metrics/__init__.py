"""Metrics: the counts of a hub, for Prometheus and for FastAPI's telemetry."""
