"""The text of an error."""

from __future__ import annotations


def shown(error: BaseException) -> str:
    """Return all messages that a traceback of ``error`` shows: its own, and those of its causes."""
    texts = []
    each: BaseException | None = error
    while each is not None:
        texts.append(str(each))
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return "\n".join(texts)
