"""Two gateways are restarted one after the other, under load."""

import asyncio
import collections
import signal
import time

import grpc
from runsgateway.v1 import run_pb2, run_service_pb2

from calls import COMPLETED, DEADLINE, KEY, Runs, info
from servers import embedded, ending, gateway, mesh

RATE = 200
STREAMS = 50
# Each word of an answer takes so long that a run outlasts the restart of a gateway.
SLOW = {"embedded.delay_ms": "1500"}
DRAIN = ["--drain-delay", "3s", "--drain-timeout", "5s"]


class Load:
    """Unary calls at a steady rate, a tenth of them writes."""

    def __init__(self, runs):
        self.runs = runs
        self.made = 0
        self.failed = collections.Counter()
        self.over = asyncio.Event()

    async def run(self):
        made = await self.runs.create()
        one = run_service_pb2.WaitRunRequest(thread_id=made.thread_id, run_id=made.id)
        await self.runs.stub.WaitRun(one, metadata=[KEY], timeout=DEADLINE)
        self.began, calls = time.monotonic(), set()
        while not self.over.is_set():
            due = int((time.monotonic() - self.began) * RATE)
            while self.made < due:
                call = asyncio.create_task(self.call(made))
                calls.add(call)
                call.add_done_callback(calls.discard)
                self.made += 1
            await asyncio.sleep(0.005)
        self.rate = self.made / (time.monotonic() - self.began)
        await asyncio.gather(*calls)

    async def call(self, made):
        stub, options = self.runs.stub, {"metadata": [KEY], "timeout": DEADLINE}
        one = {"thread_id": made.thread_id, "run_id": made.id}
        try:
            match self.made % 20:
                case 0:
                    await self.runs.create()
                case 1:
                    await stub.ModifyRun(run_service_pb2.ModifyRunRequest(**one, run=run_pb2.RunUpdate(metadata={"a": "b"})), **options)
                case 2:
                    await stub.ListRuns(run_service_pb2.ListRunsRequest(thread_id=made.thread_id), **options)
                case 3:
                    await stub.WaitRun(run_service_pb2.WaitRunRequest(**one), **options)
                case _:
                    await stub.GetRun(run_service_pb2.GetRunRequest(**one), **options)
        except grpc.aio.AioRpcError as error:
            self.failed[f"{error.code()}: {error.details()}"] += 1


class Streams:
    """Streams that are always open: one that completes is followed by another, one that is cut is resumed."""

    def __init__(self, runs):
        self.runs = runs
        self.open = 0
        self.completed = 0
        # The calls, by id, that were cut; each was followed by that of the next number.
        self.cut = []
        self.wrong = []
        self.over = asyncio.Event()

    async def worker(self, name):
        number = 0
        while not self.over.is_set():
            call, resume = self.runs.stream(SLOW, f"{name}-{number}"), None
            while call:
                call, resume = await self.follow(call, f"{name}-{number}", resume)
                number += 1
                if resume:
                    call = self.runs.watch(*resume, f"{name}-{number}")

    async def follow(self, call, call_id, resumed):
        """Reads a stream to its end: nothing more to do, or how to resume."""
        seen, opened = set(), False
        try:
            async for event in call:
                self.open += not opened
                opened = True
                seen.add(event.type)
            if COMPLETED in seen:
                self.completed += 1
            else:
                self.wrong.append(f"{call_id} ended after {seen}")
            return None, None
        except grpc.aio.AioRpcError as error:
            about = info(error).metadata
            if error.code() != grpc.StatusCode.UNAVAILABLE or not {"thread_id", "run_id", "last_event"} <= set(about):
                self.wrong.append(f"{call_id} ended with {error.code()}: {error.details()} {dict(about)}")
                return None, None
            ids = about["thread_id"], about["run_id"]
            if resumed and ids != resumed:
                self.wrong.append(f"{call_id} resumes {ids} in place of {resumed}")
            self.cut.append(call_id)
            return call, ids
        finally:
            self.open -= opened


async def under_load():
    """What the restarts did, in words. Raises AssertionError if anybody was hurt."""
    with ending(embedded()) as api:
        url = f"http://{api.address('rest')}/v1"
        async with mesh("rolling", [url, url], *DRAIN) as (envoy, gateways), Runs(envoy.address) as runs:
            load, streams = Load(runs), Streams(runs)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(load.run())
                for number in range(STREAMS):
                    tasks.create_task(streams.worker(f"stream{number}"))
                for number, old in enumerate(gateways):
                    await full(streams)
                    before = len(streams.cut)
                    await asyncio.to_thread(old.end, signal.SIGTERM)
                    assert old.process.returncode == 0, old.printed
                    assert len(streams.cut) - before >= STREAMS // 5, f"only {len(streams.cut) - before} streams were cut"
                    gateways[number] = gateway(url, *DRAIN, listen=old.address("grpc"))
                    gateways[number].address("grpc")
                    await envoy.healthy(2)
                load.over.set()
                streams.over.set()
    assert not load.failed, f"{load.failed} of {load.made} unary calls"
    assert load.rate >= 0.95 * RATE, f"only {load.rate:.0f} calls a second were made"
    assert not streams.wrong, streams.wrong
    served = {call["client_request_id"]: call["gateway"] for call in envoy.calls()}
    for cut in streams.cut:
        name, number = cut.split("-")
        assert served[f"{name}-{int(number) + 1}"] != served[cut], f"{cut} was resumed where it was cut"
    return (
        f"{load.made} unary calls at {load.rate:.0f} a second, none failed; {len(streams.cut)} streams cut, all resumed on the other gateway; "
        f"{streams.completed} runs seen to their end"
    )


async def full(streams):
    """Waits until all streams are open."""
    async with asyncio.timeout(20):
        while streams.open < STREAMS:
            await asyncio.sleep(0.02)
