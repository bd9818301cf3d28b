"""A comparison of the messages that were published with those that clients have received."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum, auto

from hubbub import Position


class Fate(Enum):
    """The outcome of a message, as far as its publisher knows."""

    #: It was sent, without an answer or with an unclear one.
    UNKNOWN = auto()
    #: It was never sent.
    REFUSED = auto()
    ACCEPTED = auto()


class Loss(Enum):
    """The accepted messages that the engine was made to lose."""

    NOTHING = auto()
    #: Clients must be notified. Idempotency keys are lost, too: a message with one may be accepted again.
    EVERYTHING = auto()
    #: It was set back to an earlier state, and may assign the offsets of the lost messages again, until a
    #: worker notices and a new epoch begins.
    THE_LATEST = auto()


@dataclass
class Message:
    """One message, with a text that no other message has.

    :param key: its idempotency key, with which it is published until it is accepted.
    :param after: a message that was accepted before this one was sent.
    :param positions: the positions that its publisher got. More than one if the engine has lost the first.
    """

    text: str
    key: str | None = None
    after: Message | None = field(default=None, repr=False)
    fate: Fate = Fate.UNKNOWN
    positions: set[Position] = field(default_factory=set)


@dataclass
class Run:
    """The messages that a client received after a position, until it was notified of a loss."""

    start: Position
    texts: list[str] = field(default_factory=list)

    @property
    def end(self) -> Position:
        return Position(self.start.offset + len(self.texts), self.start.epoch)

    def __iter__(self) -> Iterator[tuple[Position, str]]:
        for offset, text in enumerate(self.texts, self.start.offset + 1):
            yield Position(offset, self.start.epoch), text


@dataclass
class Account:
    """The record of one client.

    :param runs: its runs; a new one begins each time that it reconnects and cannot resume.
    :param breaks: the number of its connections that were closed because of a loss.
    :param objections: errors that it noticed itself.
    """

    name: str
    runs: list[Run] = field(default_factory=list)
    breaks: int = 0
    objections: list[str] = field(default_factory=list)

    def covers(self, position: Position) -> bool:
        return any(
            run.start.epoch == position.epoch and run.start.offset < position.offset <= run.end.offset
            for run in self.runs
        )


@dataclass
class Counts:
    """The counts of one fault, or of several."""

    published: int = 0
    accepted: int = 0
    unknown: int = 0
    refused: int = 0
    #: Number of repeated publications with the same key, and of those whose message a client had already.
    retries: int = 0
    suppressed: int = 0
    delivered: int = 0
    #: How often clients resumed, were disconnected because of a loss, and could not resume.
    resumes: int = 0
    breaks: int = 0
    losses: int = 0
    #: Accepted messages that a client did not receive, and was notified of.
    notified: int = 0
    #: The longest time, in seconds, in which a client received nothing.
    silence: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        total = Counts(
            **{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)}
        )
        total.silence = max(self.silence, other.silence)
        return total

    def __str__(self) -> str:
        return ", ".join(
            f"{value:.1f} s {each.name}" if isinstance(value, float) else f"{value} {each.name}"
            for each in fields(self)
            for value in [getattr(self, each.name)]
        )


class Ledger:
    """The records of one trial.

    :param messages: all messages of publishers, accepted or not.
    :param accounts: the records of all clients.
    :param kept: the history of the channel at the end, as the engine has it.
    :param top: the position of the channel at the end.
    :param loss: the loss of the engine. Without one, no client may have been notified of a loss.
    """

    def __init__(
        self,
        messages: Iterable[Message],
        accounts: Sequence[Account],
        kept: Iterable[tuple[Position, str]],
        top: Position,
        loss: Loss = Loss.NOTHING,
    ) -> None:
        self._messages = {message.text: message for message in messages}
        self._accounts = accounts
        self._kept = dict(kept)
        self._top = top
        self._loss = loss
        self._is_lossy = loss is not Loss.NOTHING
        # The message at each position, and its first witness.
        self._order: dict[Position, tuple[str, str]] = {}

    def problems(self) -> list[str]:
        """Return a sentence for each error; none if every client is right or was notified."""
        return list(self._find())

    @property
    def notified(self) -> int:
        """Return the number of accepted messages that clients did not receive, summed over clients."""
        accepted = {position for message in self._messages.values() for position in message.positions}
        return sum(not account.covers(position) for account in self._accounts for position in accepted)

    def _find(self) -> Iterator[str]:
        self._name_epochs()
        for account in self._accounts:
            yield from (f"{account.name}: {objection}" for objection in account.objections)
        # One order
        for message in self._messages.values():
            for position in message.positions:
                yield from self._put(position, message.text, "its publisher")
        for position, text in self._kept.items():
            yield from self._put(position, text, "the engine")
        for account in self._accounts:
            for run in account.runs:
                for position, text in run:
                    yield from self._put(position, text, account.name)
        # Each message
        places: dict[str, list[Position]] = {}
        for position, (text, _) in self._order.items():
            places.setdefault(text, []).append(position)
        for text, positions in places.items():
            yield from self._check_places(text, positions)
        # Each client
        for account in self._accounts:
            yield from self._check_account(account)

    def _put(self, position: Position, text: str, name: str) -> Iterator[str]:
        known, witness = self._order.setdefault(position, (text, name))
        if known != text and not self._is_ambiguous(position):
            yield f"{name} has {text!r} at {position}, but {witness} has {known!r} there"

    def _is_ambiguous(self, position: Position) -> bool:
        """Return whether the offset may have been assigned twice."""
        return self._loss is Loss.THE_LATEST and position.epoch != self._top.epoch

    def _check_places(self, text: str, positions: Sequence[Position]) -> Iterator[str]:
        message = self._messages.get(text)
        if message is None:
            yield f"{text!r} was never published, but is at {positions}"
            return
        if message.fate is Fate.REFUSED:
            yield f"{text!r} was never sent, but is at {positions}"
        for position in positions:
            for earlier in message.after.positions if message.after else ():
                if (
                    earlier.epoch == position.epoch
                    and earlier > position
                    and not self._is_ambiguous(position)
                ):
                    yield f"{text!r} is at {position}, before {earlier}, which was accepted earlier"
        has_lost_key = self._is_lossy and message.key is not None
        is_once_per_epoch = len({position.epoch for position in positions}) == len(positions)
        # The rest of a stream may continue in a new epoch, at the same offsets.
        is_renamed = self._is_lossy and len({position.offset for position in positions}) == 1
        if (
            len(positions) > 1
            and not (is_renamed and is_once_per_epoch)
            and not (has_lost_key and (is_once_per_epoch or self._loss is Loss.THE_LATEST))
        ):
            yield f"{text!r} is doubled: it is at {positions}"

    def _check_account(self, account: Account) -> Iterator[str]:
        if not account.runs:
            yield f"{account.name} has never joined"
            return
        # In an epoch that was set back, a notified client begins again, maybe with messages that it has.
        got = Counter(
            (number if self._is_ambiguous(run.start) else run.start.epoch, text)
            for number, run in enumerate(account.runs)
            for text in run.texts
        )
        yield from (
            f"{account.name} received {text!r} {count} times" for (_, text), count in got.items() if count > 1
        )
        end = account.runs[-1].end
        if end != self._top:
            yield f"{account.name} is at {end}, but the channel at {self._top}"
        was_notified = len(account.runs) > 1
        if (was_notified or account.breaks) and not self._is_lossy:
            starts = [run.start for run in account.runs]
            yield f"{account.name} was notified of a loss, but there is none: it began at {starts}"
        for message in self._messages.values():
            for position in message.positions:
                if not account.covers(position) and not (was_notified and self._is_lossy):
                    yield f"{account.name} never received {message.text!r}, accepted at {position}"

    def _name_epochs(self) -> None:
        """Name the epochs of runs that began before there was one, from the positions of their messages."""
        known = {
            (position.offset, text): position.epoch
            for position, text in [
                *self._kept.items(),
                *((each, message.text) for message in self._messages.values() for each in message.positions),
            ]
        }
        for account in self._accounts:
            for run in account.runs:
                if run.start.epoch == "":
                    epochs = {known.get((position.offset, text)) for position, text in run} - {None}
                    if epochs:
                        run.start = run.start._replace(epoch=str(epochs.pop()))
