"""Runs that are read on two replicas while something is broken.

Must hold, whatever is broken: no live stream fails, or is silent for longer than the store may
take; each reader sees each event once and in order, and what it does not see is a gap; what was
not recorded has no position.
"""

import asyncio
import contextlib

import grpc

from servers import Redis, replicas
from streams import Reader, Runs, judge
from upstream import Plan, Upstream

# In seconds: how long a stream may wait for the store, how much longer it may be silent, and after
# what time an owner that is not heard of is dead.
TIMEOUT = 1
SLACK = 1
LEASE = 3
# About five seconds, an event every tenth of one.
PLAN = Plan(messages=2, words=18, pause=0.1, burst=1)


class Scene:
    """Runs that are at work: their source on the first replica, with a reader that started them,
    and a reader on the second."""

    def __init__(self, upstream, gateways):
        self.upstream = upstream
        self.gateways = gateways
        self.runs = [Runs(gateway.listen) for gateway in gateways]
        self.owners, self.others = [], []
        # The streams, those of the owners first.
        self.reading = []

    async def begin(self, number, plan=PLAN, seen=8):
        """Returns once each reader has seen some events."""
        for index in range(number):
            owner = Reader(f"thread_{index}")
            self.upstream.plans[owner.thread_id] = plan
            self.owners.append(owner)
            self.start(owner, self.runs[0].create(owner.thread_id))
        async with asyncio.timeout(20):
            for owner in self.owners:
                await owner.until(seen)
        for owner in self.owners:
            other = Reader(owner.thread_id, owner.run_id)
            self.others.append(other)
            self.start(other, self.runs[-1].resume(owner.thread_id, owner.run_id))
        async with asyncio.timeout(20):
            for other in self.others:
                await other.until(seen)

    def start(self, reader, call):
        self.reading.append(asyncio.create_task(reader.read(call)))

    async def end(self, owners_leave=False):
        """Waits until all streams and runs are over. None may have failed, but those of the owners
        if they had to leave."""
        await asyncio.gather(*self.reading)
        await asyncio.gather(*self.upstream.tasks)
        readers = self.others if owners_leave else self.owners + self.others
        failed = [reader.error for reader in readers if reader.error]
        assert not failed, f"{len(failed)} streams failed: {failed[0]!r}"

    def run(self, reader):
        return self.upstream.runs[reader.run_id]

    def judge(self, readers):
        return [judge(reader, self.run(reader)) for reader in readers]

    async def resumed(self, reader, runs):
        """What a reader has in the end that lost its stream just now and resumes it."""
        again = Reader(reader.thread_id, reader.run_id)
        again.events = list(reader.events)
        again.forget_unrecorded()
        call = runs.resume(again.thread_id, again.run_id, again.position)
        async with asyncio.timeout(20):
            code = await again.read(call)
        assert code == grpc.StatusCode.OK, f"{again.run_id} after {again.position}: {again.error!r}"
        return again

    def longest(self, readers):
        """The longest silence, in seconds."""
        return max(reader.stall[0] for reader in readers)


@contextlib.asynccontextmanager
async def scene(store, number=2, upstream=None, **flags):
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream())
        gateways = await stack.enter_async_context(replicas(number, upstream, store, **flags))
        it = Scene(upstream, gateways)
        try:
            yield it
        finally:
            for task in it.reading:
                task.cancel()
            for runs in it.runs:
                await runs.channel.close()


async def store_fault(break_, mend, words=(), runs=10, lasts=2, through=None):
    """Breaks the store in the middle of runs, for a while. Says what was seen."""
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(Redis(*words))
        url = store.url
        if through:
            through = await stack.enter_async_context(through(store.port))
            url = through.url
        it = await stack.enter_async_context(scene(url))
        await it.begin(runs)
        await break_(store, through)
        await asyncio.sleep(lasts)
        # One more, while the store is not there.
        late = Reader("thread_late")
        it.upstream.plans[late.thread_id] = Plan(messages=1, words=14, pause=0.1, burst=1)
        it.owners.append(late)
        it.start(late, it.runs[0].create(late.thread_id))
        await late.until(3)
        await mend(store, through)
        await it.end()
        # Readers elsewhere cannot tell an owner without a store from one that is dead.
        for readers, limit in [(it.owners, TIMEOUT + SLACK), (it.others, LEASE + TIMEOUT + SLACK)]:
            silent = it.longest(readers)
            assert silent <= limit, f"a stream was silent for {silent:.1f} s, of at most {limit}"
        # Their sources live: they have all.
        owners = it.judge(it.owners)
        gaps = [it.run(r).id for r, seen in zip(it.owners, owners) if seen.gaps]
        assert not gaps, f"{len(gaps)} of {len(owners)} live streams have a gap: {gaps[:5]}"
        unrecorded = sum(seen.unrecorded for seen in owners)
        for reader in it.owners:
            places = [bool(event.position) for event in reader.events]
            assert places == sorted(places, reverse=True), f"{reader.run_id}: positions come back"
        others = it.judge(it.others)
        gaps = sum(bool(seen.gaps) for seen in others)
        resumed = []
        for reader in it.owners:
            for runs_ in it.runs:
                resumed.append(await it.resumed(reader, runs_))
        resumed = it.judge(resumed)
        whole = sum(not seen.gaps for seen in resumed)
        return (
            f"{len(owners)} live streams whole, silent for at most {it.longest(it.owners):.1f} s, {unrecorded} of their events not recorded; {gaps} "
            f"of {len(others)} other readers had a gap; {whole} of {len(resumed)} resumed whole"
        ), unrecorded
