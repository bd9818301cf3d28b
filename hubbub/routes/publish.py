"""The POST door: ``POST /channels/{channel}``, for ``fetch``. One request is one message."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from msgspec import Raw, json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from hubbub.channels.access import Outcome, Target
from hubbub.channels.current import Client
from hubbub.channels.messages import peek
from hubbub.connection.decoding import as_json
from hubbub.exceptions import Denied
from hubbub.protocols.messages import position_id
from hubbub.routes.preflight import cors_headers
from hubbub.routes.refusals import find_target, refusals
from hubbub.routes.serving import Entrance, Serving

JSON, TEXT, BINARY = "application/json", "text/plain", "application/octet-stream"


class PublishDoor:
    """The door for single messages.

    :param serving: the parts of the hub that it uses.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def endpoint(self, request: Request, channel: str) -> Response:
        """Handle one message, and answer with the publication."""
        serving, client = self._serving, Client(request)
        with (
            Entrance(serving, client, opens_connection=False) as entrance,
            refusals(serving, request, entrance),
        ):
            access = await entrance.enter()
            target = find_target(access, channel)
            await access.subscribe(client, target)
            kind = self._content_type(request, target)
            body = await self._body(request)
            message = _message(kind, body, target)
            type_ = peek(message) if isinstance(message, str) else None
            outcome = await access.publish(client, target, message, type_)
        return self._answer(request, outcome)

    # Internal

    def _content_type(self, request: Request, target: Target) -> str:
        """Return the media type of the body.

        A page of any host can have a browser send text and bytes without asking the server first, so these
        need an ``Origin`` that is allowed.

        :raises Denied: clients may not publish in this channel at all.
        :raises HTTPException: the channel takes no such body (415).
        """
        messages, client_publish = target.operations.messages, target.declaration.client_publish
        takes_text = messages.text is not None or client_publish is True
        takes_binary = messages.binary is not None or client_publish == "binary"
        accepted = []
        if takes_text or messages.has_models:
            accepted.append(JSON)
        if takes_text:
            accepted.append(TEXT)
        if takes_binary:
            accepted.append(BINARY)
        if not accepted:
            raise Denied("clients may not publish in this channel")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in accepted:
            raise HTTPException(415, f"Expected a body of the type {' or '.join(accepted)}.")
        if kind != JSON and not self._serving.admission.has_allowed_origin(request):
            raise HTTPException(415, f"Expected an allowed Origin beside a body of the type {kind}.")
        return kind

    async def _body(self, request: Request) -> bytes:
        limit = self._serving.limits.max_message_size
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise HTTPException(413, f"Expected a message of at most {limit} bytes.")
        except ClientDisconnect:
            raise HTTPException(400, "The request is incomplete.") from None
        return bytes(body)

    def _answer(self, request: Request, outcome: Outcome) -> Response:
        headers = cors_headers(request, self._serving.admission)
        result = outcome.result
        if result is None:
            return Response(status_code=204, headers=headers, background=outcome.background)
        answer: dict[str, Any] = {"id": None if outcome.position is None else position_id(outcome.position)}
        if result.kind == "binary":
            answer["base64"] = b64encode(result.data).decode()
        else:
            answer["data"] = Raw(result.data) if result.kind == "json" else result.data.decode()
        return Response(json.encode(answer), headers=headers, media_type=JSON, background=outcome.background)


def _message(kind: str, body: bytes, target: Target) -> str | bytes:
    """Return the message that a body is.

    :raises InvalidMessage: the body is not JSON.
    :raises HTTPException: the body is not text, or not the text that the channel takes (422).
    """
    if kind == BINARY:
        return body
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise HTTPException(422, "Expected text in UTF-8.") from None
    is_for_models = target.operations.messages.has_models
    return _unquoted(text, target) if kind == JSON and not is_for_models else text


def _unquoted(text: str, target: Target) -> str:
    """Return the text for which a JSON body stands, in a channel that takes text.

    A JSON string is the text that it contains. Other JSON is published as it is, where no handler takes text.

    :raises InvalidMessage: the body is not JSON.
    :raises HTTPException: a handler takes text, and the body is other JSON (422).
    """
    value = as_json(text)
    if isinstance(value, str):
        return value
    if target.operations.messages.text is not None:
        raise HTTPException(422, "Expected a JSON string.")
    return text
