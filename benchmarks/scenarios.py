"""The scenarios, and the baselines that each is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from benchmarks import across
from benchmarks.load import Load
from benchmarks.measures import Measured, connections, fan_out, latency, memory, stalled
from benchmarks.peers import HISTORY, MORE, PUBLISH, QUEUED, RESUME, ROOM, WORKERS, Peer


@dataclass(frozen=True, slots=True)
class Baseline:
    """Another peer that a peer is compared with.

    :param title: its name in the terminal.
    :param name_for: returns the name of the peer to compare a peer with.
    """

    title: str
    name_for: Callable[[Peer], str]


MANAGER = Baseline("manager", lambda peer: "manager")
LIMIT = Baseline("limit", lambda peer: "reference")
SAME_SERVER = Baseline("manager, same server", lambda peer: peer.name.replace("hubbub", "manager"))
BROADCASTER = Baseline("broadcaster", lambda peer: "broadcaster-redis")
WITHOUT_HISTORY = Baseline("without", lambda peer: peer.name.removesuffix("-history"))


@dataclass(frozen=True, slots=True)
class Scenario:
    """A measurement.

    :param name: for the command line and file names.
    :param title: for charts.
    :param column: for the column of a table.
    :param unit: of the value.
    :param load: the behaviour of the clients.
    :param measure: measures once.
    :param less_is_better: for a time or for memory.
    :param needs: the feature that a peer must offer.
    :param baselines: the peers that each peer is compared with.
    :param rounds: the most rounds; some take long.
    :param quick_rounds: the most rounds of ``--quick``; 0 to leave it out.
    :param lasts: its duration as a multiple of the usual one.
    """

    name: str
    title: str
    column: str
    unit: str
    load: Load
    measure: Callable[[Peer, Load], Measured]
    less_is_better: bool = False
    needs: str = ROOM
    baselines: tuple[Baseline, ...] = (MANAGER, LIMIT)
    rounds: int = 100
    quick_rounds: int = 0
    lasts: int = 1

    def run(self, peer: Peer, seconds: float) -> Measured:
        """Measure once, on new servers.

        :param seconds: the duration, if the scenario has no end of its own.
        :raises ServerFailed: a server did not start.
        :raises LoadFailed: a server refused or disconnected clients.
        """
        return self.measure(peer, replace(self.load, seconds=self.lasts * seconds))


def _fan_outs() -> Iterator[Scenario]:
    for clients, outstanding, size in (
        (1000, 1, 128),
        (1000, 8, 128),
        (1000, 32, 128),
        (1000, 8, 4096),
        (10, 8, 128),
        (10_000, 8, 128),
    ):
        is_large = clients == 10_000
        yield Scenario(
            name=f"fanout-{clients}-{outstanding}-{size}",
            title=f"Fan-out: {clients:,} clients, {outstanding} outstanding, {size} bytes",
            column=f"{clients:,} clients, {outstanding} outstanding" + f", {size} bytes" * (size != 128),
            unit="deliveries/s",
            load=Load(clients=clients, outstanding=outstanding, size=size, settle=2.0 if is_large else 0.3),
            measure=fan_out,
            rounds=2 if is_large else 100,
            quick_rounds=2 if (clients, size) == (1000, 128) and outstanding < 32 else 0,
        )


def _queued() -> Iterator[Scenario]:
    for outstanding in (1, 8):
        yield Scenario(
            name=f"queued-{outstanding}",
            title=f"Servers that are not uvicorn: 1,000 clients, {outstanding} outstanding",
            column=f"1,000 clients, {outstanding} outstanding",
            unit="deliveries/s",
            load=Load(clients=1000, outstanding=outstanding),
            measure=fan_out,
            needs=QUEUED,
            baselines=(SAME_SERVER,),
            rounds=3,
        )


def _across_workers() -> Iterator[Scenario]:
    for rate in (100, 1000):
        yield Scenario(
            name=f"across-latency-{rate}",
            title=f"Two workers: {rate:,} messages a second, one client at each",
            column=f"latency at {rate:,} messages a second",
            unit="median ms",
            load=Load(clients=2, rate=float(rate), settle=1.0, patience=2.0),
            measure=across.latency,
            less_is_better=True,
            needs=WORKERS,
            baselines=(BROADCASTER,),
            rounds=3,
        )
    for outstanding in (8, 256):
        yield Scenario(
            name=f"across-fanout-{outstanding}",
            title=f"Two workers: one publishes, 100 clients at the other, {outstanding} outstanding",
            column=f"fan-out, {outstanding} outstanding",
            unit="deliveries/s",
            load=Load(clients=101, outstanding=outstanding, settle=1.0, patience=2.0),
            measure=across.fan_out,
            needs=WORKERS,
            baselines=(BROADCASTER,),
            rounds=3,
        )


def _publishes() -> Iterator[Scenario]:
    for at_once, how in ((1, "one at a time"), (100, "100 at a time")):
        yield Scenario(
            name=f"publish-{at_once}",
            title=f"Publishing in one process, {how}",
            column=f"publishing {how}",
            unit="publications/s",
            load=Load(outstanding=at_once, settle=1.0, patience=1.0),
            measure=across.publishes,
            needs=PUBLISH,
            baselines=(BROADCASTER,),
            rounds=3,
        )


SCENARIOS = (
    *_fan_outs(),
    Scenario(
        name="latency",
        title="Latency: 1,000 clients, 2 messages a second",
        column="latency",
        unit="median ms",
        load=Load(rate=2.0, settle=1.0),
        measure=latency,
        less_is_better=True,
        rounds=2,
        lasts=3,
    ),
    Scenario(
        name="connect",
        title="Connecting: 2,000 clients",
        column="connecting",
        unit="connections/s",
        load=Load(mode="idle", clients=2000),
        measure=connections,
        rounds=3,
        quick_rounds=1,
    ),
    Scenario(
        name="memory",
        title="Memory: 2,000 idle clients in one channel",
        column="memory",
        unit="KiB per connection",
        load=Load(mode="idle", clients=2000),
        measure=memory,
        less_is_better=True,
        rounds=2,
        quick_rounds=1,
    ),
    Scenario(
        name="stalled",
        title="One of 201 clients does not read: 3,000 messages of 4 KB",
        column="one does not read",
        unit="messages of 3,000",
        load=Load(clients=201, stalled=1, messages=3000, size=4096, outstanding=8, warmup=0),
        measure=stalled,
        rounds=1,
        quick_rounds=1,
    ),
    Scenario(
        name="many",
        title="Many channels: 9,900 with two clients each",
        column="many channels",
        unit="deliveries/s",
        load=Load(path="/many/{}", clients=19_800, channels=9_900, settle=3.0),
        measure=fan_out,
        needs=MORE,
        rounds=1,
    ),
    Scenario(
        name="echo",
        title="Echo: 50 clients, each sends and waits",
        column="echo",
        unit="messages/s",
        load=Load(mode="echo", path="/echo", clients=50),
        measure=fan_out,
        needs=MORE,
        quick_rounds=2,
    ),
    *_queued(),
    *_across_workers(),
    *_publishes(),
    Scenario(
        name="history",
        title="The cost of a history: 100 clients of one worker, 8 outstanding",
        column="fan-out to 100 clients",
        unit="deliveries/s",
        load=Load(clients=100, outstanding=8),
        measure=fan_out,
        needs=HISTORY,
        baselines=(WITHOUT_HISTORY,),
    ),
    Scenario(
        name="resume",
        title="5,000 clients resume at once, each of which has missed 100 messages",
        column="5,000 clients resume",
        unit="s",
        load=Load(
            mode="resume", path="/resume", clients=5000, connecting=1000, messages=100, warmup=0, deadline=120
        ),
        measure=across.resume,
        less_is_better=True,
        needs=RESUME,
        baselines=(),
        rounds=3,
    ),
)
