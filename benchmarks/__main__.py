"""``scripts/bench``: run the scenarios on all servers, round by round."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Protocol, TypeVar

from benchmarks.load import LoadFailed
from benchmarks.peers import PEERS, Peer
from benchmarks.report import BASELINE, LIMIT, Report, number, versions
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.server import ServerFailed

DOCS = Path(__file__).parent.parent / "docs"
#: Between these lines of docs/benchmarks.md stand the results.
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
QUICK_PEERS = ("reference", "hubbub", "manager")


def main() -> None:
    options = parse()
    if (os.cpu_count() or 1) < 2:
        sys.exit("Expected two CPUs, one for the server and one for the load, but this machine has one.")
    scenarios = [each for each in SCENARIOS if each.is_quick or not options.quick]
    peers = [each for each in PEERS if each.name in QUICK_PEERS or not options.quick]
    scenarios = _select(scenarios, options.scenarios) if options.scenarios else scenarios
    peers = _select(PEERS, options.peers) if options.peers else peers
    peers = [peer for peer in peers if is_installed(peer)]

    report = Report(scenarios, peers, options.seconds)
    try:
        run(report, options.rounds, options.seconds)
    except KeyboardInterrupt:
        print("\nStopped; here is what there is.")
    for scenario in scenarios:
        print("\n".join(["", scenario.title, *summary(report, scenario)]))
    if options.json:
        options.json.write_text(report.as_json())
    if options.docs:
        write_docs(report)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the most important, in less than two minutes")
    parser.add_argument("--rounds", type=int, help="how often (default: 5; quick: 2)")
    parser.add_argument(
        "--seconds", type=float, help="how long each measurement takes (default: 3; quick: 1.5)"
    )
    parser.add_argument("--scenarios", nargs="+", metavar="NAME", help="which: " + _names(SCENARIOS))
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="which servers: " + _names(PEERS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to this file")
    parser.add_argument("--docs", action="store_true", help="write the results to docs/benchmarks.md")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.seconds = options.seconds or (1.5 if options.quick else 3.0)
    return options


def run(report: Report, rounds: int, seconds: float) -> None:
    """Round after round, each scenario on all servers one after the other, so that what the machine does
    meanwhile befalls all of them."""
    for turn in range(rounds):
        for scenario in report.scenarios:
            if turn >= scenario.rounds:
                continue
            print(f"\nRound {turn + 1} of {min(rounds, scenario.rounds)}: {scenario.title}", flush=True)
            for peer in report.peers:
                outcome = report.outcome(scenario, peer)
                if outcome is None or outcome.failure:
                    continue
                begin = time.monotonic()
                try:
                    measured = scenario.run(peer, seconds)
                except (LoadFailed, ServerFailed) as exc:
                    outcome.failure = str(exc).splitlines()[-1]
                    print(f"  {peer.title:28} failed: {outcome.failure}", flush=True)
                    continue
                outcome.rounds.append(measured)
                took = time.monotonic() - begin
                print(
                    f"  {peer.title:28} {number(measured['value']):>12} {scenario.unit}   ({took:.0f} s)",
                    flush=True,
                )


def summary(report: Report, scenario: Scenario) -> Iterable[str]:
    for peer in report.peers:
        outcome = report.outcome(scenario, peer)
        if outcome is None:
            continue
        if not outcome.rounds:
            yield f"  {peer.title:28} {outcome.failure or 'not measured'}"
            continue
        ratios = [
            f"{ratio:6.2f} x {to}" for to in (BASELINE, LIMIT) if (ratio := report.ratio(scenario, peer, to))
        ]
        yield f"  {peer.title:28} {number(outcome.median()):>12} {scenario.unit}  {'  '.join(ratios)}"


def write_docs(report: Report) -> None:
    """Put the results in their place in docs/benchmarks.md, and the charts beside it."""
    charts = DOCS / "benchmarks"
    charts.mkdir(exist_ok=True)
    for scenario in report.scenarios:
        (charts / f"{scenario.name}.svg").write_text(report.as_svg(scenario))
    (charts / "results.json").write_text(report.as_json())
    page = DOCS / "benchmarks.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    results = report.as_markdown([scenario.name for scenario in report.scenarios])
    page.write_text(f"{before}{BEGIN}\n\n{results}\n{END}{after}")


def is_installed(peer: Peer) -> bool:
    """Whether everything is there that ``peer`` needs; says so if not."""
    if peer.command[0] == "node" and shutil.which("node") is None:
        print(f"{peer.title}: left out, there is no Node.")
        return False
    try:
        versions(peer)
    except (PackageNotFoundError, FileNotFoundError) as exc:
        print(f"{peer.title}: left out, not installed ({Path(str(exc)).name}).")
        return False
    return True


class _Named(Protocol):
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=_Named)


def _select(among: Iterable[N], names: Iterable[str]) -> list[N]:
    by_name = {each.name: each for each in among}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        sys.exit(f"Expected some of {', '.join(by_name)}, but got {', '.join(unknown)}.")
    return [by_name[name] for name in names]


def _names(among: Iterable[_Named]) -> str:
    return ", ".join(each.name for each in among)


if __name__ == "__main__":
    main()
