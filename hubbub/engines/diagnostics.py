"""What ``hubbub doctor`` reports about an engine's server."""

from __future__ import annotations

from typing import NamedTuple


class Diagnosis(NamedTuple):
    """One fact about a server, and whether it is a problem.

    :param ok: whether the server is set up as Hubbub needs it in this respect.
    :param text: what was found, without a period at the end.
    :param advice: what to do about it; empty if nothing is to be done.
    """

    ok: bool
    text: str
    advice: str = ""
