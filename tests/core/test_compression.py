from __future__ import annotations

import random
import zlib

import pytest

from hubbub.core.compression import THRESHOLD, WINDOW_BITS, deflate


def inflate(payload: bytes) -> bytes:
    return zlib.decompress(payload + b"\x00\x00\xff\xff" + b"\x03\x00", wbits=-WINDOW_BITS)


def test_it_is_smaller_and_the_same() -> None:
    data = b"All work and no play makes Jack a dull boy. " * 1000
    payload = deflate(data)
    assert payload is not None
    assert len(payload) < len(data) / 50
    assert inflate(payload) == data


def test_a_message_refers_to_none_before_it() -> None:
    data = random.Random(1).randbytes(200) * 2
    assert deflate(data) == deflate(data) is not None


@pytest.mark.parametrize("data", [bytearray(b"x" * 1000), memoryview(b"x" * 1000)])
def test_it_takes_buffers_as_websockets_has_them(data: bytearray | memoryview) -> None:
    payload = deflate(data)
    assert payload is not None
    assert inflate(payload) == bytes(data)


def test_below_the_threshold_it_is_not_tried() -> None:
    assert deflate(b"x" * (THRESHOLD - 1)) is None
    assert deflate(b"x" * THRESHOLD) is not None


@pytest.mark.parametrize("size", [THRESHOLD, 5_000, 100_000])
def test_data_that_does_not_get_smaller_is_left_alone(size: int) -> None:
    assert deflate(random.Random(1).randbytes(size)) is None


def test_of_a_long_message_the_beginning_decides() -> None:
    dense = random.Random(1).randbytes(4096)
    assert deflate(dense + b"x" * 100_000) is None
    assert deflate(b"x" * 100_000 + dense) is not None
    assert deflate(dense + b"x" * 10_000) is not None
