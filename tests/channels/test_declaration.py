"""Declarations of channels: settings that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from hubbub import Hub


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history": 50}, r"History\(size=100, ttl=3600\), but got 50"),
        ({"history": True}, "but got True"),
        ({"history": {"size": 5}}, "but got {'size': 5}"),
        ({"presence": "yes"}, "Expected True or False for the presence of 'room', but got 'yes'"),
        ({"presence": None}, "but got None"),
    ],
)
def test_wrong_types_of_history_and_presence_are_refused(options: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Hub().channel("room", **options)
