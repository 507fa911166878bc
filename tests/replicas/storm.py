"""Many streams, while gateways are killed and connections are cut."""

import asyncio
import collections
import random
import time

import grpc

from servers import Redis, replicas
from streams import Reader, Runs, judge
from upstream import Plan, Upstream

# How the runs speak: long enough to see a kill, and the takeover after it.
PLAN = Plan(messages=3, words=12, pause=1.0, burst=6)
# Callers begin within this time, in seconds: a crowd that comes at once is not what is tested here.
BEGIN = 5
# A source's replica that was killed so long after the run's end has recorded it.
SURE = 2
CUT = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED}


class Storm:
    def __init__(self, chance, upstream, gateways, streams):
        self.chance = chance
        self.upstream = upstream
        self.gateways = gateways
        self.streams = streams
        self.over = False
        self.threads = 0
        self.count = collections.Counter()
        self.wrong = []
        self.clients = {}
        self.checked = []

    def client(self):
        """A caller's connection to any replica, dead or alive. Callers share a few."""
        key = self.chance.randrange(len(self.gateways)), self.chance.randrange(4)
        if key not in self.clients:
            self.clients[key] = Runs(self.gateways[key[0]].listen)
        return self.clients[key]

    async def caller(self):
        """Makes runs one after the other, and reads each to its end."""
        await asyncio.sleep(self.chance.uniform(0, BEGIN))
        while not self.over:
            self.threads += 1
            reader = Reader(f"thread_{self.threads}")
            self.upstream.plans[reader.thread_id] = PLAN
            try:
                async with asyncio.timeout(90):
                    if await self.follow(reader):
                        self.checked.append(reader)
            except TimeoutError:
                self.wrong.append(f"{reader.run_id}: hangs after {reader.events[-1:]}")

    async def follow(self, reader):
        """Whether there was a run."""
        while not reader.run_id:
            code = await self.read(reader, self.client().create(reader.thread_id))
            if code == grpc.StatusCode.OK:
                return True
            if not reader.run_id and code is not None and code not in CUT:
                self.wrong.append(f"a create ended with {reader.error!r}")
                return False
            if not reader.run_id:
                # It may have been made all the same.
                self.count["creates of unknown outcome"] += 1
                await self.find(reader)
        while True:
            # Where a gateway is not there, it is not at once.
            await asyncio.sleep(self.chance.uniform(0, 0.5))
            reader.forget_unrecorded()
            call = self.client().resume(reader.thread_id, reader.run_id, reader.position)
            before = len(reader.events)
            code = await self.read(reader, call)
            self.count["resumed"] += len(reader.events) > before
            if code == grpc.StatusCode.OK:
                return True
            if code is not None and code not in CUT:
                self.wrong.append(f"{reader.run_id}: resuming ended with {reader.error!r}")
                return True

    async def read(self, reader, call):
        """Reads until the end, or until it is cut; gives `None` if it was cut here."""
        reading = asyncio.create_task(reader.read(call))
        cut_after = self.chance.expovariate(1 / 12)
        done, _ = await asyncio.wait([reading], timeout=cut_after)
        if done:
            return await reading
        self.count["connections cut"] += 1
        call.cancel()
        try:
            await reading
        except asyncio.CancelledError:
            pass
        return None

    async def find(self, reader):
        """Looks for the run of a create whose answer was lost."""
        while True:
            try:
                runs = await self.client().list(reader.thread_id)
                reader.run_id = runs.data[0].id if runs.data else ""
                return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.2)

    async def kill(self, seconds):
        """Kills gateways, one at a time, and starts them again."""
        end = time.monotonic() + seconds
        # Half of the callers are there.
        await asyncio.sleep(BEGIN / 2)
        while time.monotonic() < end:
            gateway = self.chance.choice(self.gateways)
            await gateway.kill()
            self.count["kills"] += 1
            await asyncio.sleep(self.chance.uniform(0, 2))
            await gateway.start()
            await asyncio.sleep(self.chance.uniform(1, 8))
        self.over = True

    def judge(self):
        """Judges each run by what became of its source."""
        kills = {}
        for gateway in self.gateways:
            kills.update(gateway.killed)
        for reader in self.checked:
            run = self.upstream.runs[reader.run_id]
            died = kills.get(run.replica, float("inf"))
            try:
                seen = judge(reader, run)
                if run.is_cut:
                    assert died < float("inf"), f"{run.id}: its source ended, its replica did not"
                    assert seen.gaps, f"{run.id}: its source died, and there is no gap"
                    later = sum(died < at < run.finished + 30 for at in kills.values())
                    assert seen.gaps <= 1 + later, f"{run.id}: {seen.gaps} gaps, {later} kills"
                    kind = "of a dead source, one gap" if seen.gaps == 1 else "of a dead source and dead successors, more gaps"
                    self.count[kind] += 1
                    self.count["events before gaps"] += sum(not it.synthesized for it in reader.events)
                elif died > run.finished + SURE:
                    assert not seen.gaps, f"{run.id}: its source lived, and there is a gap"
                    assert not seen.unrecorded, f"{run.id}: {seen.unrecorded} events without position"
                    self.count["of a living source, whole"] += 1
                    self.count["events of whole runs"] += len(reader.events)
                else:
                    self.count["of a source that died at the very end"] += 1
            except AssertionError as error:
                self.wrong.append(str(error))


async def storm(number, streams, seconds, seed):
    """What was counted, in words. Raises AssertionError if anything was wrong."""
    chance = random.Random(seed)
    async with Upstream(seed) as upstream, Redis() as store:
        # The machine is busy: a store that is slow for that is not what is tested here.
        flags = {"event_log_timeout": "5s", "max_live_streams": "100000", "event_log_lease": "4s"}
        async with replicas(number, upstream, store.url, **flags) as gateways:
            it = Storm(chance, upstream, gateways, streams)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(it.kill(seconds))
                    for _ in range(streams):
                        tasks.create_task(it.caller())
                # The upstream's last words of runs whose streams were cut.
                await asyncio.gather(*upstream.tasks)
                it.judge()
                it.count["takeovers by those that live"] = sum(
                    [await gateway.count("takeovers") for gateway in gateways]
                )
                failures = [await gateway.count("failures") for gateway in gateways]
            finally:
                for client in it.clients.values():
                    await client.channel.close()
    counted = ", ".join(f"{number} {what}" for what, number in sorted(it.count.items()))
    shown = "\n".join(it.wrong[:10])
    assert not it.wrong, f"seed {seed}: {len(it.wrong)} of {len(it.checked)}; {counted}\n{shown}"
    assert not any(failures), f"seed {seed}: streams went on without the log: {failures}; {counted}"
    for kind in ["of a living source, whole", "of a dead source, one gap", "resumed"]:
        assert it.count[kind], f"seed {seed}: none {kind}: {counted}"
    return f"seed {seed}, {len(it.checked)} runs: {counted}"
