"""The extension permessage-deflate (:rfc:`7692`) for many clients that are sent the same.

It keeps nothing from one message to the next, in either direction: what is compressed for one client is right
for all, and a client that is silent costs no memory for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from websockets.exceptions import NegotiationError, PayloadTooBig
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.typing import ExtensionParameter

from hubbub.core.compression import WINDOW_BITS, deflate

#: Bytes that may come out of what a client sent in one go, which is up to 256 KiB. Many messages, each just
#: under the limit of one, would otherwise be a gigabyte before any of them is looked at.
INFLATE_LIMIT = 16 * 1024 * 1024


class SharedDeflate(PerMessageDeflate):
    """One client's extension."""

    def __init__(self, client_window_bits: int) -> None:
        super().__init__(
            remote_no_context_takeover=True,
            local_no_context_takeover=True,
            remote_max_window_bits=client_window_bits,
            local_max_window_bits=WINDOW_BITS,
        )
        #: Bytes that have come out since this was last set to zero.
        self.inflated = 0

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        try:
            decoded = super().decode(frame, max_size=max_size)
        except PayloadTooBig as exc:
            # Its traceback holds as much of the message as fits the limit, for as long as websockets keeps
            # the exception, which is in a cycle with the connection.
            raise exc.with_traceback(None) from None
        if decoded is not frame:
            self.inflated += len(decoded.data)
            if max_size is not None and self.inflated > (limit := max(max_size, INFLATE_LIMIT)):
                raise PayloadTooBig(None, limit)
        return decoded

    def encode(self, frame: Frame) -> Frame:
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY) or not frame.fin:
            return super().encode(frame)
        payload = deflate(frame.data)
        if payload is None:
            return frame
        return Frame(frame.opcode, payload, rsv1=True)


class SharedDeflateFactory(ServerPerMessageDeflateFactory):
    """Negotiates it. An offer that asks for a smaller window than the one that all share is declined."""

    def __init__(self) -> None:
        super().__init__(
            server_no_context_takeover=True,
            client_no_context_takeover=True,
            server_max_window_bits=WINDOW_BITS,
            client_max_window_bits=WINDOW_BITS,
        )

    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], PerMessageDeflate]:
        answer, agreed = super().process_request_params(params, accepted_extensions)
        if agreed.local_max_window_bits < WINDOW_BITS:
            raise NegotiationError(f"unsupported server_max_window_bits = {agreed.local_max_window_bits}")
        return answer, SharedDeflate(agreed.remote_max_window_bits)
