"""The extension permessage-deflate: negotiation, context, and the limit of inflated data."""

from __future__ import annotations

import zlib

import pytest
from websockets.client import ClientProtocol
from websockets.exceptions import PayloadTooBig
from websockets.extensions import ClientExtensionFactory
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from hubbub.servers.limits import INFLATE_LIMIT
from hubbub.servers.permessage_deflate import SharedDeflate, SharedDeflateFactory

ANSWER = (
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=12"
)

Offer = ClientPerMessageDeflateFactory


def negotiate(*offers: ClientExtensionFactory) -> tuple[str | None, ClientProtocol, ServerProtocol]:
    """Shake hands, and return the server's answer and both ends."""
    client = ClientProtocol(parse_uri("ws://localhost/"), extensions=offers or None)
    server = ServerProtocol(extensions=[SharedDeflateFactory()])
    client.send_request(client.connect())
    server.receive_data(b"".join(client.data_to_send()))
    (request,) = server.events_received()
    assert isinstance(request, Request)
    response = server.accept(request)
    server.send_response(response)
    client.receive_data(b"".join(server.data_to_send()))
    assert client.handshake_exc is None
    assert client.events_received() == [response]
    return response.headers.get("Sec-WebSocket-Extensions"), client, server


@pytest.mark.parametrize(
    ("offers", "answer"),
    [
        # Browsers send this offer.
        ([Offer()], f"{ANSWER}; client_max_window_bits=12"),
        ([Offer(client_max_window_bits=None)], ANSWER),
        ([Offer(client_max_window_bits=9)], f"{ANSWER}; client_max_window_bits=9"),
        ([Offer(True, True, 15, 15)], f"{ANSWER}; client_max_window_bits=12"),
        ([Offer(server_max_window_bits=12, client_max_window_bits=None)], ANSWER),
        # Windows smaller than the shared one.
        ([Offer(server_max_window_bits=11)], None),
        ([Offer(server_max_window_bits=9)], None),
        ([Offer(server_max_window_bits=8)], None),
        ([], None),
        # The first acceptable offer.
        ([Offer(server_max_window_bits=9), Offer(client_max_window_bits=None)], ANSWER),
    ],
)
def test_offers_and_answers(offers: list[Offer], answer: str | None) -> None:
    assert negotiate(*offers)[0] == answer


@pytest.mark.parametrize("offer", [Offer(), Offer(client_max_window_bits=9), Offer(True, True, 15, 15)])
def test_both_ends_understand_each_other_and_keep_no_context(offer: Offer) -> None:
    _, client, server = negotiate(offer)
    (extension,) = server.extensions
    data = [b"x" * 100, b"All work and no play " * 10_000, bytes(range(256)) * 100]
    for message in data:
        client.send_binary(message)
        server.send_text(message[:200_000] if message[0] < 128 else b"")
    server.receive_data(b"".join(client.data_to_send()))
    client.receive_data(b"".join(server.data_to_send()))
    assert [event.data for event in server.events_received()] == data  # type: ignore[union-attr]
    assert len(client.events_received()) == 3
    assert client.parser_exc is server.parser_exc is None
    assert not {"encoder", "decoder"} & vars(extension).keys()


def compressed(data: bytes, *, fin: bool = True) -> Frame:
    return PerMessageDeflate(True, True, 15, 15).encode(Frame(Opcode.BINARY, data, fin))


def test_short_or_incompressible_messages_are_sent_uncompressed() -> None:
    extension = SharedDeflate(15)
    for frame in (
        Frame(Opcode.TEXT, b"x" * 100),
        Frame(Opcode.BINARY, zlib.compress(bytes(range(256)))),
        Frame(Opcode.PING, b""),
        Frame(Opcode.CLOSE, b""),
    ):
        assert extension.encode(frame) is frame
    frame = extension.encode(Frame(Opcode.TEXT, b"x" * 1000))
    assert frame.rsv1
    assert len(frame.data) < 100


def test_a_message_in_fragments() -> None:
    sender, receiver = SharedDeflate(15), SharedDeflate(12)
    parts = [
        receiver.decode(sender.encode(Frame(opcode, b"x" * 1000, fin)))
        for opcode, fin in ((Opcode.TEXT, False), (Opcode.CONT, False), (Opcode.CONT, True))
    ]
    assert [part.data for part in parts] == [b"x" * 1000] * 3
    assert receiver.inflated == 3000


def test_the_size_of_an_inflated_message_is_limited_and_its_data_not_kept() -> None:
    extension = SharedDeflate(15)
    bomb = compressed(bytes(50_000_000))
    assert len(bomb.data) < 50_000
    with pytest.raises(PayloadTooBig) as caught:
        extension.decode(bomb, max_size=10_000_000)
    frame = caught.value.__traceback__
    while frame is not None:
        sizes = [len(value) for value in frame.tb_frame.f_locals.values() if isinstance(value, bytes)]
        assert max(sizes, default=0) < 1000
        frame = frame.tb_next


def test_the_inflated_size_of_all_messages_of_one_read_is_limited() -> None:
    extension = SharedDeflate(15)
    frame = compressed(bytes(INFLATE_LIMIT // 4))
    for _ in range(3):
        for _ in range(4):
            extension.decode(frame, max_size=INFLATE_LIMIT // 2)
        with pytest.raises(PayloadTooBig, match=f"exceeds limit of {INFLATE_LIMIT} bytes"):
            extension.decode(frame, max_size=INFLATE_LIMIT // 2)
        extension.inflated = 0


def test_a_server_without_a_message_limit_inflates_everything() -> None:
    extension = SharedDeflate(15)
    frame = compressed(bytes(INFLATE_LIMIT))
    for _ in range(2):
        assert len(extension.decode(frame).data) == INFLATE_LIMIT
