"""Tools for tests: the contract of engines, a fake engine, and a sink that collects publications."""

from hubbub.testing.engine_contract import Collector, EngineContract, publication
from hubbub.testing.fake_engine import FakeEngine, FakeServer

__all__ = ["Collector", "EngineContract", "FakeEngine", "FakeServer", "publication"]
