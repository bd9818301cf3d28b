"""Reports: ratios, tables, charts, and their place in the docs."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import __main__ as bench
from benchmarks.peers import PEERS
from benchmarks.report import TABLES, Report
from benchmarks.scenarios import LIMIT, SCENARIOS, Baseline
from benchmarks.scenarios import MANAGER as AS_MANAGER
from tests.benchmarks.runs import ECHO, HERE, HUBBUB, MANAGER, ON_LINUX, REFERENCE

pytestmark = ON_LINUX


@pytest.fixture
def report() -> Report:
    report = Report([ECHO], HERE, seconds=3.0)
    for peer, values in (REFERENCE, (100, 0, 300)), (HUBBUB, (10, 40, 30)), (MANAGER, (10, 20, 30)):
        outcome = report.outcome(ECHO, peer)
        assert outcome
        outcome.rounds += [{"value": value, "load_cpu": 0.5, "load_idle": 0.5} for value in values]
    return report


def test_a_ratio_is_the_median_of_those_within_each_round(report: Report) -> None:
    # The ratio of the medians would be 1.5.
    assert report.ratio(ECHO, HUBBUB, AS_MANAGER) == 1.0
    # A round in which the other server did nothing has no ratio.
    assert report.ratio(ECHO, HUBBUB, LIMIT) == pytest.approx(0.1)
    assert report.ratio(ECHO, HUBBUB, Baseline("ws", lambda peer: "ws")) is None


def test_a_history_is_compared_with_the_same_engine_without() -> None:
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == "history")
    peers = [peer for peer in PEERS if peer.name.startswith("hubbub-sqlite")]
    report = Report([scenario], peers, seconds=1.0)
    for peer, value in zip(peers, (100, 80), strict=True):
        outcome = report.outcome(scenario, peer)
        assert outcome
        outcome.rounds.append({"value": value})
    (baseline,) = scenario.baselines
    assert report.ratio(scenario, peers[1], baseline) == 0.8


def test_a_report_is_json(report: Report) -> None:
    peers = json.loads(report.as_json())["scenarios"]["echo"]["peers"]
    assert [each["value"] for each in peers["hubbub"]["rounds"]] == [10, 40, 30]


def test_a_report_is_tables(report: Report) -> None:
    outcome = report.outcome(ECHO, MANAGER)
    assert outcome
    outcome.failure = "it fell over"
    text = report.as_markdown()
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| server | echo (messages/s) |",
        "|---|---:|",
        "| C, epoll (the limit) | 100 |",
        "| Hubbub, hubbub run | 30 |",
        "| FastAPI, ConnectionManager | 20 |",
    ]
    assert "* FastAPI, ConnectionManager, echo: failed after 3 rounds (`it fell over`)." in text
    assert "Command: `scripts/bench --docs --scenarios echo`" in text


def test_a_table_says_what_was_lost() -> None:
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == "across-fanout-8")
    peer = next(peer for peer in PEERS if peer.name == "channels-redis")
    report = Report([scenario], [peer], seconds=1.0)
    outcome = report.outcome(scenario, peer)
    assert outcome
    outcome.rounds.append({"value": 5000, "lost": 15, "expected": 35_148, "misordered": 0})
    assert outcome.notes == ["channels_redis, fan-out, 8 outstanding: 15 of 35,148 deliveries lost."]


def test_a_report_is_a_chart(report: Report) -> None:
    svg = ElementTree.fromstring(report.as_svg(ECHO))
    widths = {
        rect.get("class"): float(rect.get("width", 0))
        for rect in svg.iter("{http://www.w3.org/2000/svg}rect")
    }
    assert widths.keys() == {"limit", "ours", "other"}
    assert widths["limit"] > widths["ours"] > widths["other"]


def test_a_report_says_whether_the_load_generator_was_the_limit(report: Report) -> None:
    scenario = SCENARIOS[0]
    report = Report([scenario], HERE, seconds=1)
    for peer, value, idle in (REFERENCE, 1_000_000, 0.2), (HUBBUB, 500_000, 0.5):
        outcome = report.outcome(scenario, peer)
        assert outcome
        outcome.rounds.append({"value": value, "load_cpu": 1 - idle, "load_idle": idle})
    ceiling, most, verdict = report.check()
    assert "at most 1,000,000 deliveries/s from the limit, with 80 % of its core" in ceiling
    assert "at most 500,000 deliveries/s from any other server, with 50 % of its core (Hubbub" in most
    assert verdict == "With no server it was idle for less than 5 % of the time."
    outcome = report.outcome(scenario, HUBBUB)
    assert outcome
    outcome.rounds.append({"value": 1, "load_cpu": 1, "load_idle": 0.01})
    assert f"may be capable of more, with Hubbub, hubbub run ({scenario.title})." in report.check()[2]


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bench, "DOCS", tmp_path)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results.json")
    return tmp_path


def test_results_are_put_in_their_place(docs: Path) -> None:
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in ("memory", "latency")]
    report = Report(scenarios, [HUBBUB], seconds=1.0)
    for scenario in scenarios:
        outcome = report.outcome(scenario, HUBBUB)
        assert outcome
        outcome.rounds.append({"value": 1})
    page = docs / "benchmarks.md"
    page.write_text("before\n<!-- results -->\n<!-- end of results -->\nafter\n")
    bench.write_docs(report)
    once = page.read_text()
    assert once.startswith("before\n<!-- results -->\n\nMeasured on ")
    assert once.endswith("\n<!-- end of results -->\nafter\n")
    assert "](benchmarks/memory.svg)" in once
    bench.write_docs(report)
    assert page.read_text() == once
    assert {path.name for path in (docs / "benchmarks").iterdir()} == {"memory.svg"}


def test_a_page_without_a_place_for_results_is_an_error(docs: Path) -> None:
    (docs / "benchmarks.md").write_text("<!-- results -->")
    with pytest.raises(bench.PageWithoutPlace, match="to have the lines"):
        bench.split_page()


def test_the_docs_have_a_place_for_results() -> None:
    bench.split_page()


def test_scenarios_that_a_run_leaves_out_keep_their_earlier_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = SCENARIOS[0], SCENARIOS[1]
    peers = [peer for peer in PEERS if peer.name == "reference"]
    earlier = Report([one, other], peers, 1.0)
    later = Report([other], peers, 1.0)
    for report, value in ((earlier, 1.0), (later, 2.0)):
        for scenario in report.scenarios:
            outcome = report.outcome(scenario, peers[0])
            assert outcome is not None
            outcome.rounds.append({"value": value})

    def values(report: Report) -> list[list[float]]:
        outcomes = [report.outcome(scenario, peers[0]) for scenario in report.scenarios]
        return [[each["value"] for each in outcome.rounds] for outcome in outcomes if outcome]

    text = earlier.as_json()
    assert values(later.completed(SCENARIOS, text)) == [[1.0], [2.0]]
    assert values(later.completed(SCENARIOS, "")) == [[2.0]]
    # Results of other versions are not kept.
    changed = json.loads(text)
    changed["versions"]["reference"] = {"cc": "1"}
    assert values(later.completed(SCENARIOS, json.dumps(changed))) == [[2.0]]
    # Nor are those of another machine.
    monkeypatch.setattr("benchmarks.report.machine", lambda: {"cpu": "another"})
    assert values(later.completed(SCENARIOS, text)) == [[2.0]]


def test_each_scenario_is_in_one_table() -> None:
    names = [name for each in TABLES.values() for name in each]
    assert sorted(names) == sorted(scenario.name for scenario in SCENARIOS)


def test_each_scenario_has_peers_and_something_to_compare_them_with() -> None:
    names = {peer.name for peer in PEERS}
    for scenario in SCENARIOS:
        peers = [peer for peer in PEERS if scenario.needs in peer.offers]
        assert len(peers) > 1
        assert {each.name_for(peer) for each in scenario.baselines for peer in peers} <= names
