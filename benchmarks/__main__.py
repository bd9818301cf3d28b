"""``scripts/bench``: run the scenarios on all servers, round by round."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from benchmarks.build import BUILD, PROGRAMS, BuildFailed, build
from benchmarks.load import LoadFailed
from benchmarks.peers import PEERS, Peer
from benchmarks.process import TooFewCores, cores
from benchmarks.report import CHARTS, NotInstalled, Report, number, times, versions
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.server import ServerFailed

DOCS = Path(__file__).parent.parent / "docs"
#: All that was measured for the docs on this machine, in a folder that git ignores.
RESULTS = BUILD / "results.json"
#: The results are between these lines of docs/benchmarks.md.
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
QUICK_PEERS = ("reference", "hubbub", "manager")


def main() -> None:
    options = parse()
    scenarios = [each for each in SCENARIOS if each.quick_rounds or not options.quick]
    peers = [each for each in PEERS if each.name in QUICK_PEERS or not options.quick]
    scenarios = _select(SCENARIOS, options.scenarios) if options.scenarios else scenarios
    peers = _select(PEERS, options.peers) if options.peers else peers
    # A missing tool is an error now and not at the end.
    try:
        cores()
        for program in PROGRAMS:
            build(program)
        if options.docs:
            split_page()
    except (BuildFailed, TooFewCores, PageWithoutPlace) as exc:
        sys.exit(str(exc))
    peers = [peer for peer in peers if is_installed(peer)]

    report = Report(scenarios, peers, options.seconds)
    try:
        run(report, options)
    except KeyboardInterrupt:
        print("\nStopped; these are the results so far.")
        options.docs = False
    finally:
        if options.json:
            options.json.write_text(report.as_json())
    for scenario in scenarios:
        print("\n".join(["", scenario.title, *summary(report, scenario)]))
    print("\n".join(["", *report.check()]))
    if options.docs:
        write_docs(report)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the main scenarios, in less than two minutes")
    parser.add_argument("--rounds", type=_positive(int), help="number of rounds (default: 5; quick: 2)")
    parser.add_argument(
        "--seconds", type=_positive(float), help="duration of a measurement (default: 3; quick: 1)"
    )
    parser.add_argument("--scenarios", nargs="+", metavar="NAME", help="scenarios: " + _names(SCENARIOS))
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="servers: " + _names(PEERS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to this file")
    parser.add_argument(
        "--docs", action="store_true", help="replace the results in docs/ by those of this run"
    )
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.seconds = options.seconds or (1.0 if options.quick else 3.0)
    return options


def run(report: Report, options: argparse.Namespace) -> None:
    """Run round after round, each scenario on all servers in turn.

    So other load on the machine affects all servers.
    """
    rounds = {
        scenario: min(options.rounds, scenario.quick_rounds if options.quick else scenario.rounds) or 1
        for scenario in report.scenarios
    }
    runs = [
        (turn, scenario, [peer for peer in report.peers if report.outcome(scenario, peer)])
        for turn in range(options.rounds)
        for scenario in report.scenarios
        if turn < rounds[scenario]
    ]
    done, total = 0, sum(len(peers) for _, _, peers in runs)
    for turn, scenario, peers in runs:
        print(f"\nRound {turn + 1} of {rounds[scenario]}: {scenario.title}", flush=True)
        for peer in peers:
            done += 1
            print(f"{done:5}/{total}  {peer.title:28} ", end="", flush=True)
            begin = time.monotonic()
            result = measure(report, scenario, peer, options.seconds)
            print(f"{result}   ({time.monotonic() - begin:.0f} s)", flush=True)


def measure(report: Report, scenario: Scenario, peer: Peer, seconds: float) -> str:
    """Run a scenario once, unless it has failed before, and return a line about it."""
    outcome = report.outcome(scenario, peer)
    assert outcome is not None
    if outcome.failure:
        return f"{'':>12} left out after a failure"
    try:
        measured = scenario.run(peer, seconds)
    except (LoadFailed, ServerFailed) as exc:
        outcome.failure = " ".join(str(exc).split())
        # The end of the server's output, if there is any.
        printed = [line for note in getattr(exc, "__notes__", ()) for line in note.splitlines()][-5:]
        return "\n".join([f"{'':>12} failed: {outcome.failure}", *(f"{'':14}{line}" for line in printed)])
    outcome.rounds.append(measured)
    return f"{number(measured['value']):>12} {scenario.unit}"


def summary(report: Report, scenario: Scenario) -> Iterable[str]:
    for peer in report.peers:
        outcome = report.outcome(scenario, peer)
        if outcome is None:
            continue
        if not outcome.rounds:
            yield f"  {peer.title:28} {outcome.failure or 'not measured'}"
            continue
        ratios = [
            f"{times(ratio):>6} x {baseline.title}"
            for baseline in scenario.baselines
            if (ratio := report.ratio(scenario, peer, baseline)) is not None
        ]
        wrong = outcome.median("not_in_order") if "not_in_order" in outcome.rounds[0] else 0
        if wrong:
            ratios.append(f"{number(wrong)} messages lost, doubled or out of order")
        value = f"{number(outcome.median()):>12} {scenario.unit}"
        yield "  ".join([f"  {peer.title:28} {value}", *ratios])


class PageWithoutPlace(Exception):
    """docs/benchmarks.md has no place for the results."""


def split_page() -> tuple[Path, str, str]:
    """Return docs/benchmarks.md and its text before and after the results.

    :raises PageWithoutPlace: it does not have the lines around them.
    """
    page = DOCS / "benchmarks.md"
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise PageWithoutPlace(
            f"Expected {page} to have the lines {BEGIN} and {END}. Add them around the results."
        )
    return page, before, after


def write_docs(report: Report) -> None:
    """Put the results into docs/benchmarks.md, and the charts beside it.

    Scenarios that this run has left out keep the results of an earlier run on this machine, whose numbers are
    in a file outside the repository.
    """
    report = report.completed(SCENARIOS, RESULTS.read_text() if RESULTS.exists() else "")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(report.as_json())
    charts = DOCS / "benchmarks"
    charts.mkdir(exist_ok=True)
    for old in charts.glob("*.svg"):
        old.unlink()
    for scenario in report.scenarios:
        if scenario.name in CHARTS:
            (charts / f"{scenario.name}.svg").write_text(report.as_svg(scenario))
    page, before, after = split_page()
    page.write_text(f"{before}{BEGIN}\n\n{report.as_markdown()}\n{END}{after}")


def is_installed(peer: Peer) -> bool:
    """Return whether the packages of ``peer`` are installed, and print if not."""
    try:
        versions(peer)
    except NotInstalled as exc:
        print(f"{peer.title} is left out: {exc}.")
        return False
    return True


T = TypeVar("T", int, float)


def _positive(kind: type[T]) -> Callable[[str], T]:
    def parse(text: str) -> T:
        value = kind(text)
        if not value > 0:
            raise ValueError
        return value

    parse.__name__ = f"positive {kind.__name__}"  # argparse shows it
    return parse


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
