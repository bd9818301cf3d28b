"""Event streams as a browser reads them, and a client for them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """An event, as the standard's parser dispatches it.

    :param id: the last event id at this moment, which an earlier event may have set.
    """

    name: str
    id: str
    data: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class Parser:
    """The parser of the HTML standard, 9.2.6 ("Interpreting an event stream")."""

    def __init__(self) -> None:
        self.retry: int | None = None
        self.comments = 0
        self._bytes = b""
        self._id = ""
        self._name, self._data = "", ""

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes, and return the events that they complete."""
        self._bytes += data
        events: list[Event] = []
        while (line := self._line()) is not None:
            if line:
                self._field(line.decode(errors="replace"))
                continue
            if self._data:
                events.append(Event(self._name or "message", self._id, self._data.removesuffix("\n")))
            self._name, self._data = "", ""
        return events

    def _line(self) -> bytes | None:
        ends = [at for end in (b"\r", b"\n") if (at := self._bytes.find(end)) >= 0]
        if not ends:
            return None
        at = min(ends)
        if self._bytes[at:] == b"\r":
            # The other half of the line end may follow.
            return None
        size = 2 if self._bytes[at : at + 2] == b"\r\n" else 1
        line, self._bytes = self._bytes[:at], self._bytes[at + size :]
        return line

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "":
                self.comments += 1
            case "event":
                self._name = value
            case "data":
                self._data += value + "\n"
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isdecimal():
                self.retry = int(value)


def parse(data: bytes) -> list[Event]:
    """Return the events of a whole stream."""
    return Parser().feed(data)
