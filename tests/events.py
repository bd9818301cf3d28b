"""Event streams as a browser reads them, for tests of their bytes and of real servers."""

from __future__ import annotations

import json
from typing import Any

from hubbub.testing import event_stream


class Event(event_stream.Event):
    """An event, whose data may be JSON."""

    __slots__ = ()

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class Parser(event_stream.Parser):
    """A parser of such events."""

    def feed(self, chunk: bytes) -> list[Event]:  # type: ignore[override]
        return [Event(*event) for event in super().feed(chunk)]


def parse(data: bytes) -> list[Event]:
    """Return the events of a whole stream."""
    return Parser().feed(data)
