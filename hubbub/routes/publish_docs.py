"""The POST door in the OpenAPI document: a route for each declared channel that takes messages.

The door itself is one route for all channels. Its place before these is why none of them is ever called: they
only show FastAPI the models, parameters and security schemes of the handlers.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar, Union

from fastapi import APIRouter, Body
from fastapi.exceptions import FastAPIError
from fastapi.params import Depends
from pydantic import BaseModel, Field
from pydantic.errors import PydanticUserError
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute

from hubbub.channels.declaration import ChannelDeclaration
from hubbub.channels.operations import PublishHandler, publish_handlers
from hubbub.channels.signature import asks_for, unwrap
from hubbub.routes.serving import PATH

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Published(BaseModel, Generic[T]):
    """The answer to a message that was published."""

    id: str | None = Field(description="The position of the publication; null in a channel without history.")
    data: T = Field(description="The published data.")


class PublishDocs:
    """The routes of a hub's router that document the POST door.

    :param router: where they are.
    """

    def __init__(self, router: APIRouter) -> None:
        self._router = router
        # By pattern: its route.
        self._routes: dict[str, BaseRoute] = {}

    def follow(self, declaration: ChannelDeclaration, dependencies: Sequence[Depends]) -> None:
        """Document ``declaration``, now and whenever it gets an on_publish handler.

        :param dependencies: of the hub.
        """
        update = partial(self._update, declaration, dependencies)
        declaration.functions.on_new_message.append(update)
        update()

    def _update(self, declaration: ChannelDeclaration, dependencies: Sequence[Depends]) -> None:
        if (old := self._routes.pop(declaration.pattern, None)) is not None:
            self._router.routes.remove(old)
        handlers = publish_handlers(declaration, dependencies)
        handlers = [each for each in handlers if not each.operation.needs_connection]
        if not handlers:
            return
        count = len(self._router.routes)
        try:
            self._add(declaration, handlers, dependencies)
        except (FastAPIError, PydanticUserError, AssertionError, TypeError, ValueError) as exc:
            # Its annotations serve a message, and not a document.
            logger.warning(
                "Left %r out of the OpenAPI document, because FastAPI cannot describe it: %s",
                declaration.pattern,
                exc,
            )
            del self._router.routes[count:]
        else:
            self._routes[declaration.pattern] = self._router.routes[-1]

    def _add(
        self,
        declaration: ChannelDeclaration,
        handlers: Sequence[PublishHandler],
        dependencies: Sequence[Depends],
    ) -> None:
        signatures = [handler.operation.signature for handler in handlers]
        parameters: dict[str, inspect.Parameter] = {}
        for name in declaration.parsed.names:
            hint = next((each.path[name] for each in signatures if name in each.path), str)
            parameters[name] = _parameter(name, hint)
        for signature in signatures:
            for each in signature.injected:
                if not asks_for([each], HTTPConnection):
                    parameters.setdefault(each.name, each.replace(kind=each.KEYWORD_ONLY))
        models = [each.message_type for each in signatures if unwrap(each.message_type) not in (str, bytes)]
        if models:
            name = next(each.message for each in signatures if each.message) or "message"
            # "X | Y" needs the types in the source.
            parameters[name] = _parameter(name, Union[tuple(models)], Body())  # noqa: UP007
        endpoint = _endpoint(list(parameters.values()), signatures[0].name)
        results = [each.returns for each in signatures if each.returns not in (inspect.Signature.empty, None)]
        texts = [each.function.__doc__ for each in signatures if each.function.__doc__]
        self._router.add_api_route(
            PATH.removesuffix("{channel:path}") + declaration.pattern,
            endpoint,
            methods=["POST"],
            response_model=Published[Union[tuple(results or [Any])]],  # type: ignore[misc]  # noqa: UP007
            responses={204: {"description": "The message is handled, and nothing is published."}},
            name=signatures[0].name,
            summary=f"Publish to {declaration.pattern}",
            description="\n\n".join(map(inspect.cleandoc, texts)),
            dependencies=[*dependencies, *declaration.dependencies],
            openapi_extra=None if models else _plain_body(signatures[0].message_type),
        )


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _endpoint(parameters: list[inspect.Parameter], name: str) -> Callable[..., Any]:
    async def documented(**arguments: Any) -> None:
        raise AssertionError("Expected the door to come before the routes that document it.")

    documented.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    documented.__name__ = name
    return documented


def _plain_body(message_type: Any) -> dict[str, Any]:
    is_text = unwrap(message_type) is str
    media_type = "text/plain" if is_text else "application/octet-stream"
    schema = {"type": "string"} if is_text else {"type": "string", "format": "binary"}
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}
