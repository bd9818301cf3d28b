"""Tools for tests: clients of an app without a server, a clock that stands still, and tools for engines."""

from hubbub.testing.app_lifespan import lifespan
from hubbub.testing.client import Client, connect
from hubbub.testing.clock import FakeClock, FrozenClock, freeze
from hubbub.testing.engine_contract import Collector, EngineContract, publication
from hubbub.testing.event_stream import EventStream, events
from hubbub.testing.failures import Closed, Refused
from hubbub.testing.fake_engine import FakeEngine, FakeServer

__all__ = [
    "Client",
    "Closed",
    "Collector",
    "EngineContract",
    "EventStream",
    "FakeClock",
    "FakeEngine",
    "FakeServer",
    "FrozenClock",
    "Refused",
    "connect",
    "events",
    "freeze",
    "lifespan",
    "publication",
]
