"""A caller that reads a run's events, wherever it can, and what it has to have seen in the end."""

import asyncio
import collections
import dataclasses
import time

import grpc
from google.rpc import error_details_pb2, status_pb2
from runsgateway.v1 import run_event_pb2, run_pb2, run_service_pb2, run_service_pb2_grpc

OPTIONS = [("grpc.enable_retries", 0), ("grpc.max_reconnect_backoff_ms", 500)]
KEY = "Bearer one"


class Runs:
    """`RunService` of one gateway. gRPC's own retries are off."""

    def __init__(self, address, key=KEY, options=()):
        self.channel = grpc.aio.insecure_channel(address, [*OPTIONS, *options])
        self.stub = run_service_pb2_grpc.RunServiceStub(self.channel)
        self.metadata = [("authorization", key)]

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.channel.close()

    def create(self, thread_id):
        spec = run_pb2.RunSpec(assistant_id="asst_1")
        options = run_service_pb2.StreamOptions(resumable=True)
        request = run_service_pb2.StreamCreateRunRequest(
            thread_id=thread_id, run=spec, options=options
        )
        return self.stub.StreamCreateRun(request, metadata=self.metadata)

    def submit(self, thread_id, run_id):
        output = run_pb2.ToolOutput(tool_call_id="call_1", output="42")
        request = run_service_pb2.StreamSubmitToolOutputsRequest(
            thread_id=thread_id,
            run_id=run_id,
            tool_outputs=run_pb2.ToolOutputs(tool_outputs=[output]),
            options=run_service_pb2.StreamOptions(resumable=True),
        )
        return self.stub.StreamSubmitToolOutputs(request, metadata=self.metadata)

    def resume(self, thread_id, run_id, position=""):
        request = run_service_pb2.ResumeRunRequest(
            thread_id=thread_id, run_id=run_id, after_position=position
        )
        return self.stub.ResumeRun(request, metadata=self.metadata)

    def watch(self, thread_id, run_id):
        request = run_service_pb2.WatchRunRequest(thread_id=thread_id, run_id=run_id)
        return self.stub.WatchRun(request, metadata=self.metadata)

    async def list(self, thread_id):
        request = run_service_pb2.ListRunsRequest(thread_id=thread_id)
        return await self.stub.ListRuns(request, metadata=self.metadata, timeout=10)


@dataclasses.dataclass
class Event:
    """What a test looks at of an event."""

    name: str
    position: str
    synthesized: bool
    # The ids that a gap names.
    named: list
    # The state of a run's event.
    status: int
    at: float


def read(event):
    kind = run_event_pb2.RunEventType.Name(event.type).removeprefix("RUN_EVENT_TYPE_").lower()
    payload = event.WhichOneof("payload")
    name, named, status = kind, [], 0
    if payload == "gap":
        named = [*event.gap.run_step_ids, *event.gap.message_ids]
    elif payload:
        of = getattr(event, payload)
        name = f"{kind} {of.id}"
        if payload == "message_delta":
            name += " " + "".join(part.text.value for part in of.delta.content)
        if payload == "run":
            status = of.status
    return Event(name, event.position, event.synthesized, named, status, time.monotonic())


def info(error):
    """The metadata of an error's `ErrorInfo`."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                found = error_details_pb2.ErrorInfo()
                if detail.Unpack(found):
                    return dict(found.metadata)
    return {}


class Reader:
    """A run as one caller has seen it, over all the streams that it read."""

    def __init__(self, thread_id, run_id=""):
        self.thread_id = thread_id
        self.run_id = run_id
        self.events = []
        self.error = None
        # The longest time without an event, and when it was over, before the first gap: after it a
        # message comes as a whole.
        self.stall = 0, 0
        # Set at each event.
        self.heard = asyncio.Event()

    @property
    def position(self):
        """The last position."""
        return next((it.position for it in reversed(self.events) if it.position), "")

    def forget_unrecorded(self):
        """What came after the last position comes again, or is named in a gap."""
        while self.events and not self.events[-1].position:
            self.events.pop()

    async def read(self, call, most=None):
        """Reads to the end, or for a number of events; gives the code that it ended with."""
        self.error = None
        last, count, polls = time.monotonic(), 0, False
        try:
            async for message in call:
                event = read(message)
                if not polls:
                    self.stall = max(self.stall, (event.at - last, event.at))
                polls |= event.name == "gap"
                last = event.at
                self.events.append(event)
                if message.WhichOneof("payload") == "run":
                    self.run_id = message.run.id
                self.heard.set()
                count += 1
                if count == most:
                    return None
            return grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            self.error = error
            return error.code()

    async def until(self, number):
        """Waits until there are so many events."""
        while len(self.events) < number:
            self.heard.clear()
            await self.heard.wait()


@dataclasses.dataclass
class Verdict:
    # How many gaps there were; without any, all events were the upstream's.
    gaps: int
    # Events that have no position.
    unrecorded: int


def judge(reader, run):
    """Whether a reader has seen all of a run that is over: each event once, in order, and what is
    missing named in a gap. Raises AssertionError with what is wrong."""
    truth = [name.replace(".", "_", name.split(" ")[0].count(".")) for name in run.names]
    place = {name: index for index, name in enumerate(truth)}
    about = f"{run.id} (source {run.replica})"
    next_, may_skip, polls, is_unknown = 0, False, False, False
    whole, named, told = set(), [], collections.Counter()
    gaps = 0

    def wrong(what, index):
        heard = [it.name + "*" * it.synthesized for it in reader.events]
        heard = heard[max(0, index - 4) : index + 4]
        return f"{about}: event {index} {what}; around it: {heard}"

    for index, event in enumerate(reader.events):
        ended = event.name.split(" ")[1] if "_completed" in event.name else ""
        if event.name == "gap":
            gaps += 1
            may_skip = True
            is_unknown |= not event.named
            twice = set(named) & set(event.named)
            assert not twice, wrong(f"names {twice} again", index)
            had = (whole | set(told)) & set(event.named)
            # Behind what nobody knows, a successor knows less than the reader.
            is_wrong = had and not is_unknown
            assert not is_wrong, wrong(f"names {had} as missing, which came", index)
            named += event.named
        elif event.synthesized:
            assert gaps, wrong("comes from polling, and no gap is before it", index)
            polls = True
            if ended:
                told[ended] += 1
        else:
            assert not polls, wrong("is the upstream's after those of polling", index)
            at = place.get(event.name)
            assert at is not None, wrong("is none of the run's", index)
            assert at >= next_, wrong("came before", index)
            assert at == next_ or may_skip, wrong(f"skips {at - next_} events unseen", index)
            may_skip = False
            next_ = at + 1
            if ended:
                whole.add(ended)
    assert reader.events, f"{about}: no events"
    last = reader.events[-1]
    assert last.name == truth[-1] , wrong("is not the run's last state", len(reader.events) - 1)
    assert last.status == run_pb2.RUN_STATUS_COMPLETED
    if polls:
        twice = [id_ for id_, times in told.items() if times > 1]
        assert not twice, f"{about}: told twice: {twice}"
        had = whole & set(told)
        assert not had, f"{about}: told again after polling began: {had}"
        missing = run.ids - whole - set(named) - set(told)
        assert not missing, f"{about}: missing, and neither named nor told later: {missing}"
        begun = {name.split(" ")[1] for name in truth[:next_] if "message" in name}
        unnamed = begun - whole - set(named)
        assert not unnamed, f"{about}: begun, never ended, not named in the gap: {unnamed}"
    elif gaps and not is_unknown:
        raise AssertionError(f"{about}: a gap that names {named}, and all events are there")
    unrecorded = sum(not event.position and event.name != "gap" for event in reader.events)
    return Verdict(gaps, unrecorded)
