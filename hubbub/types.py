"""The type aliases that several modules share."""

from __future__ import annotations

from typing import Literal, TypeAlias

#: How a message goes out: a text frame, a binary frame, or a text frame that holds JSON.
Kind: TypeAlias = Literal["text", "binary", "json"]

#: What happens to a client that reads more slowly than its channels publish; see ``core/outbox.py``.
SlowConsumer: TypeAlias = Literal["disconnect", "drop_oldest", "latest"]
