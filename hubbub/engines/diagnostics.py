"""The diagnoses of an engine's server that ``hubbub doctor`` reports."""

from __future__ import annotations

from typing import NamedTuple


class Diagnosis(NamedTuple):
    """One fact about a server, and whether it is a problem.

    :param ok: whether the server is set up as Hubbub needs it in this respect.
    :param text: the fact, without a period at the end.
    :param advice: the action to take; empty if none is needed.
    """

    ok: bool
    text: str
    advice: str = ""
