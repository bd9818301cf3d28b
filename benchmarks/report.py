"""Results as JSON, as tables and as charts."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from statistics import median
from xml.sax.saxutils import escape

from benchmarks.measures import Measured
from benchmarks.peers import HERE, Peer
from benchmarks.process import cores, siblings
from benchmarks.scenarios import Baseline, Scenario
from benchmarks.stores import StoreMissing
from benchmarks.stores import version as store_version

REFERENCE = "reference"

#: A load generator that is idle for less than this share of the time may be the bottleneck.
LEAST_IDLE = 0.05


#: Errors that the load generator counts.
ERRORS = {
    "not_in_order": "messages lost, doubled or out of order",
    "lost": "deliveries lost",
    "misordered": "deliveries doubled, out of order or after a gap",
    "lost_clients": "clients that read lost their connection",
}


class NotInstalled(Exception):
    """A package of a peer is missing, or another package has overwritten its files. The message names it."""


@dataclass(slots=True)
class Outcome:
    """The results of one peer in one scenario.

    :param rounds: the numbers of each run.
    :param failure: the error that ended the rounds, in one line, if any.
    """

    scenario: Scenario
    peer: Peer
    rounds: list[Measured] = field(default_factory=list)
    failure: str = ""

    def median(self, name: str = "value") -> float:
        return median([measured[name] for measured in self.rounds])

    @property
    def notes(self) -> list[str]:
        """Return a sentence for each kind of error."""
        where = f"{self.peer.title}, {self.scenario.column}"
        found = []
        if self.failure:
            found.append(f"{where}: failed after {len(self.rounds)} rounds (`{self.failure}`).")
        for name, description in ERRORS.items():
            if self.rounds and name in self.rounds[0] and (count := self.median(name)):
                total = f" of {number(self.median('expected'))}" if name == "lost" else ""
                found.append(f"{where}: {number(count)}{total} {description}.")
        return found

    @property
    def is_held_up(self) -> bool:
        """Whether the load generator was always busy, so that the server may be capable of more."""
        return any(measured.get("load_idle", 1) < LEAST_IDLE for measured in self.rounds)


class Report:
    """Everything measured in one run."""

    def __init__(self, scenarios: Sequence[Scenario], peers: Sequence[Peer], seconds: float) -> None:
        self.scenarios = scenarios
        self.peers = peers
        self.seconds = seconds
        self._outcomes = {
            (scenario.name, peer.name): Outcome(scenario, peer)
            for scenario in scenarios
            for peer in peers
            if scenario.needs in peer.offers
        }

    def outcome(self, scenario: Scenario, peer: Peer) -> Outcome | None:
        """Return ``None`` if the peer does not offer the feature that the scenario needs."""
        return self._outcomes.get((scenario.name, peer.name))

    def ratio(self, scenario: Scenario, peer: Peer, to: Baseline) -> float | None:
        """Return the value of ``peer`` divided by that of its baseline.

        It is the median of the ratios within each round: a machine that is slow for a while slows both.
        """
        own, other = (self._outcomes.get((scenario.name, name)) for name in (peer.name, to.name_for(peer)))
        if own is None or other is None:
            return None
        pairs = zip(own.rounds, other.rounds, strict=False)
        ratios = [one["value"] / another["value"] for one, another in pairs if another["value"]]
        return median(ratios) if ratios else None

    def check(self) -> list[str]:
        """Return sentences that say whether the load generator was the limit of a server."""
        outcomes = [outcome for outcome in self._outcomes.values() if outcome.rounds]
        fan_outs = [
            outcome
            for outcome in outcomes
            if "load_cpu" in outcome.rounds[0] and outcome.scenario.load.mode == "fanout"
        ]
        lines = []
        for source, is_limit in (("the limit", True), ("any other server", False)):
            among = [outcome for outcome in fan_outs if (outcome.peer.name == REFERENCE) is is_limit]
            if among:
                most = max(among, key=Outcome.median)
                lines.append(
                    f"The load generator received at most {number(most.median())} {most.scenario.unit} "
                    f"from {source}, with {percent(most.median('load_cpu'))} of its core "
                    f"({most.peer.title}; {most.scenario.title})."
                )
        held_up = [
            f"{outcome.peer.title} ({outcome.scenario.title})" for outcome in outcomes if outcome.is_held_up
        ]
        busy = f"was idle for less than {percent(LEAST_IDLE)} of the time"
        if held_up:
            lines.append(f"It {busy}, so that the server may be capable of more, with {'; '.join(held_up)}.")
        elif fan_outs:
            lines.append(f"With no server it {busy}.")
        return lines

    def completed(self, scenarios: Sequence[Scenario], earlier: str) -> Report:
        """Return this report with the results of ``scenarios`` that only an earlier run has.

        :param earlier: the JSON of that run. It is used only if it was on the same machine, and a scenario
            only if the versions of all its peers are the same.
        """
        before = json.loads(earlier) if earlier else {}
        now = json.loads(self.as_json())
        if before.get("machine") != now["machine"]:
            return self
        same = {name for name, made_of in now["versions"].items() if before["versions"].get(name) == made_of}
        whole = Report(scenarios, self.peers, self.seconds)
        for (name, peer), outcome in whole._outcomes.items():
            peers = before["scenarios"].get(name, {}).get("peers", {})
            if peers.keys() <= same:
                found = peers.get(peer, {})
                outcome.rounds, outcome.failure = found.get("rounds", []), found.get("failure", "")
        whole._outcomes |= self._outcomes
        whole.scenarios = [each for each in scenarios if any(outcome.rounds for outcome in whole._of(each))]
        return whole

    # Output

    def as_json(self) -> str:
        return json.dumps(
            {
                "machine": machine(),
                "versions": {peer.name: versions(peer) for peer in self.peers},
                "seconds": self.seconds,
                "scenarios": {
                    scenario.name: {
                        "title": scenario.title,
                        "unit": scenario.unit,
                        "load": {name: getattr(scenario.load, name) for name in scenario.load.__slots__},
                        "peers": {
                            outcome.peer.name: {"rounds": outcome.rounds, "failure": outcome.failure}
                            for outcome in self._of(scenario)
                            if outcome.rounds or outcome.failure
                        },
                    }
                    for scenario in self.scenarios
                },
            },
            indent=1,
        )

    def as_markdown(self) -> str:
        """Return the machine, the versions, and a table for each group of scenarios."""
        lines = [f"Measured on {', '.join(machine().values())}.", "", *self.check()]
        for title, names in TABLES.items():
            scenarios = [each for each in self.scenarios if each.name in names]
            if scenarios:
                lines += ["", f"### {title}", "", *self._table(scenarios)]
        lines += ["", "### Versions", "", *self._versions()]
        return "\n".join(lines) + "\n"

    def _table(self, scenarios: Sequence[Scenario]) -> list[str]:
        """Return the lines of a table with a row for each server and a column for each scenario."""
        charts = [each for each in scenarios if each.name in CHARTS]
        lines = [f"![{each.title}, {each.unit}](benchmarks/{each.name}.svg)\n" for each in charts]
        titles = ["server", *(f"{each.column} ({each.unit})" for each in scenarios)]
        lines += [f"| {' | '.join(titles)} |", "|---" + "|---:" * len(scenarios) + "|"]
        notes = []
        for peer in self.peers:
            outcomes = [self.outcome(scenario, peer) for scenario in scenarios]
            if any(outcomes):
                lines.append(f"| {' | '.join([peer.title, *map(_cell, outcomes)])} |")
            notes += [note for outcome in outcomes if outcome for note in outcome.notes]
        command = f"scripts/bench --docs --scenarios {' '.join(each.name for each in scenarios)}"
        return [
            *lines,
            "",
            *(f"* {note}" for note in notes),
            *([""] if notes else []),
            f"Command: `{command}`",
        ]

    def _versions(self) -> list[str]:
        found: dict[str, str] = {}
        for peer in self.peers:
            found |= versions(peer)
        return [", ".join(f"{name} {number}" for name, number in found.items()) + "."]

    def as_svg(self, scenario: Scenario) -> str:
        """Return a chart with a bar for each peer, the best on top."""
        outcomes = sorted((each for each in self._of(scenario) if each.rounds), key=_worth, reverse=True)
        return chart(
            f"{scenario.title} ({scenario.unit})",
            [(outcome.peer.title, outcome.median(), outcome.peer.name) for outcome in outcomes],
        )

    def _of(self, scenario: Scenario) -> list[Outcome]:
        return [outcome for outcome in self._outcomes.values() if outcome.scenario is scenario]


#: The tables of docs/benchmarks.md, each with its scenarios.
TABLES = {
    "One worker: fan-out": (
        *("fanout-1000-1-128", "fanout-1000-8-128", "fanout-1000-32-128", "fanout-1000-8-4096"),
        *("fanout-10-8-128", "fanout-10000-8-128"),
    ),
    "One worker: the rest": ("latency", "connect", "memory", "stalled", "many", "echo"),
    "Servers other than uvicorn": ("queued-1", "queued-8"),
    "Two workers": (
        *("across-latency-100", "across-latency-1000", "across-fanout-8", "across-fanout-256"),
        *("publish-1", "publish-100"),
    ),
    "A history": ("history", "resume"),
}
#: The scenarios that have a chart there.
CHARTS = ("fanout-1000-8-128", "memory", "across-fanout-8")


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    if not outcome.rounds:
        return "failed" if outcome.failure else "not measured"
    return number(outcome.median())


def _worth(outcome: Outcome) -> float:
    if not outcome.rounds:
        return float("-inf")
    return -outcome.median() if outcome.scenario.less_is_better else outcome.median()


def number(value: float) -> str:
    """Format ``value`` with at least three digits."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def times(ratio: float) -> str:
    return number(ratio) if ratio >= 100 else f"{ratio:.2f}"


def percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def chart(title: str, bars: Sequence[tuple[str, float, str]]) -> str:
    """Return horizontal bars as SVG, for light and dark pages.

    :param bars: a label, a value, and the name of the peer, which decides the colour.
    """
    width, left, right, row = 760, 210, 90, 24
    height = 44 + row * len(bars)
    largest = max((value for _, value, _ in bars), default=1) or 1
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        (
            "<style>text{font:13px system-ui,sans-serif;fill:#24292f}.ours{fill:#0b7285}.limit{fill:#868e96}"
            ".other{fill:#adb5bd}@media(prefers-color-scheme:dark){text{fill:#e6edf3}.ours{fill:#22b8cf}"
            ".other{fill:#495057}}</style>"
        ),
        f'<text x="8" y="20" font-weight="bold">{escape(title)}</text>',
    ]
    for index, (label, value, name) in enumerate(bars):
        top = 36 + row * index
        length = max(1.0, value / largest * (width - left - right))
        kind = "ours" if name.startswith("hubbub") else "limit" if name == REFERENCE else "other"
        parts += [
            f'<text x="{left - 8}" y="{top + 14}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="{kind}" x="{left}" y="{top + 2}" width="{length:.1f}" height="{row - 8}" rx="2"/>',
            f'<text x="{left + length + 6:.1f}" y="{top + 14}">{number(value)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def machine() -> dict[str, str]:
    """Return a description of this machine."""
    model = "an unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    server, load = cores()
    shared = ", server and load on two threads of one core" if load in siblings(server) else ""
    return {
        "cpu": f"{model} ({os.cpu_count()} CPUs{shared})",
        "kernel": f"Linux {platform.release().partition('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def versions(peer: Peer) -> dict[str, str]:
    """Return the versions of the packages of ``peer``, of Node if it runs on Node, and of its store.

    :raises NotInstalled: one of them is missing.
    """
    find: Callable[[str], str] = version
    found = {}
    if peer.command[0] == "node":
        if shutil.which("node") is None:
            raise NotInstalled("node is not installed")
        node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
        find, found = _node_version, {"node": node.stdout.strip().removeprefix("v")}
    for name in peer.packages:
        try:
            found[name] = find(name)
        except (PackageNotFoundError, FileNotFoundError):
            raise NotInstalled(f"{name} is not installed") from None
        if find is version and is_overwritten(name):
            raise NotInstalled(f"the files of {name} are those of another package")
    try:
        return found | store_version(peer.store)
    except StoreMissing as exc:
        raise NotInstalled(f"{exc} is not installed") from None


@cache
def is_overwritten(name: str) -> bool:
    """Return whether another package has overwritten the Python files of the package ``name``.

    Forks that keep the name of the module do.
    """
    for file in files(name) or ():
        if file.suffix == ".py" and file.hash is not None:
            path = Path(str(file.locate()))
            digest = hashlib.new(file.hash.mode, path.read_bytes() if path.exists() else b"").digest()
            if urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                return True
    return False


def _node_version(name: str) -> str:
    package: dict[str, str] = json.loads((HERE / "node_modules" / name / "package.json").read_text())
    return package["version"]
