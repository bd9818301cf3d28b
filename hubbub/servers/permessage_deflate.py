"""The extension permessage-deflate (:rfc:`7692`), with compressed messages shared by all clients.

No context is kept from one message to the next, in either direction. So a message compressed for one client
is valid for all, and an idle client costs no memory for compression.
"""

from __future__ import annotations

from collections.abc import Sequence

from websockets.exceptions import NegotiationError, PayloadTooBig
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.typing import ExtensionParameter

from hubbub.core.compression import WINDOW_BITS, deflate
from hubbub.servers.limits import INFLATE_LIMIT


class SharedDeflate(PerMessageDeflate):
    """The extension of one connection."""

    def __init__(self, client_window_bits: int) -> None:
        super().__init__(
            remote_no_context_takeover=True,
            local_no_context_takeover=True,
            remote_max_window_bits=client_window_bits,
            local_max_window_bits=WINDOW_BITS,
        )
        #: Bytes inflated since this was last set to zero, which happens before each read.
        self.inflated = 0

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        try:
            decoded = super().decode(frame, max_size=max_size)
        except PayloadTooBig as exc:
            # The traceback references up to max_size bytes of the message, and websockets keeps the exception
            # in a cycle with the connection.
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
    """Negotiates the extension.

    An offer that asks for a smaller window than the shared one is declined.
    """

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
