"""The two ends of a client: it is refused, or its connection is closed."""

from __future__ import annotations

import json
from typing import Any

from starlette.datastructures import Headers

from hubbub.connection.decoding import excerpt

#: Characters of a detail or a reason in the text of an exception.
EXCERPT = 500

#: Bytes of the body of a refusal that are read; the rest is not.
MAX_BODY = 1_048_576


class Refused(Exception):
    """The app refused the client with an HTTP status, before it accepted the socket or began the stream.

    ::

        with pytest.raises(Refused) as refused:
            async with connect(app, "room:7"):
                ...
        assert refused.value.status_code == 401

    :param status_code: the status of the response.
    :param body: the body of the response.
    :param headers: the headers of the response.
    :param note: one more sentence for the text of the exception.
    """

    def __init__(self, status_code: int, body: bytes, headers: Headers, note: str = "") -> None:
        self.status_code = status_code
        self.body = body
        self.headers = headers
        #: The member ``detail`` of FastAPI's response, or else its text.
        self.detail: Any = _detail(body)
        text = f"refused with {status_code}"
        if self.detail:
            text += f": {excerpt(str(self.detail), EXCERPT)}"
        super().__init__(f"{text}. {note}" if note else text)


class Closed(Exception):
    """The connection is closed: no message follows, and none can be sent.

    :param code: the close code, as the client sees it: 1006 where there was no close frame. ``None`` for a
        stream of events, which has no codes.
    :param reason: the reason in the close frame.
    :param note: one more sentence for the text of the exception.
    """

    def __init__(self, code: int | None, reason: str = "", note: str = "") -> None:
        self.code = code
        self.reason = reason
        text = "the stream has ended" if code is None else f"closed with {code}"
        if reason:
            text += f", {excerpt(reason, EXCERPT)!r}"
        super().__init__(f"{text}. {note}" if note else text)


def _detail(body: bytes) -> Any:
    try:
        content = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
    return content.get("detail", content) if isinstance(content, dict) else content
