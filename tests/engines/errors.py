"""What is shown of an error."""

from __future__ import annotations


def shown(error: BaseException) -> str:
    """All that a traceback would show of it and of what led to it."""
    texts = []
    each: BaseException | None = error
    while each is not None:
        texts.append(str(each))
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return "\n".join(texts)
