"""What tests/polyglot holds a Python client to, one line per behaviour; no example to copy.

The arguments are the addresses of four gateways: in front of the embedded API; the same with connections that grow old in a second; in front
of the scripted upstream of tests/polyglot; the first one, by connections that are cut.
"""

import asyncio
import sys

import grpc
from google.rpc import error_details_pb2, status_pb2
from runsgateway.v1 import message_pb2, message_service_pb2, message_service_pb2_grpc
from runsgateway.v1 import run_event_pb2, run_pb2, run_service_pb2 as service, run_service_pb2_grpc
from runsgateway.v1 import thread_service_pb2, thread_service_pb2_grpc, tool_pb2

from example import text_of, thread_and_run
from resuming import resuming as resuming_stream


class Gateway(run_service_pb2_grpc.RunServiceStub):
    def __init__(self, channel):
        super().__init__(channel)
        self.threads = thread_service_pb2_grpc.ThreadServiceStub(channel)
        self.messages = message_service_pb2_grpc.MessageServiceStub(channel)


def detail(error, kind):
    found = kind()
    packed = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
    for any_detail in status_pb2.Status.FromString(packed).details:
        any_detail.Unpack(found)
    return found


async def metadata(_dev, _ageing, scripted, _cutting):
    call = scripted.GetRun(
        service.GetRunRequest(thread_id="thread_1", run_id="run_paused"), metadata=[("x-client-request-id", "polyglot")]
    )
    return f"x-request-id {(await call.initial_metadata())['x-request-id']}"


async def deadline(dev, _ageing, _scripted, _cutting):
    spec = thread_and_run("Wait.", metadata={"embedded.scenario": "expire"})
    request = service.StreamCreateThreadAndRunRequest(thread_and_run=spec)
    try:
        async for _ in dev.StreamCreateThreadAndRun(request, timeout=0.5):
            pass
        return "the stream ended"
    except grpc.aio.AioRpcError as error:
        return error.code().name


async def cancellation(dev, _ageing, _scripted, _cutting):
    spec = thread_and_run("Wait.", metadata={"embedded.scenario": "expire"})
    options = service.StreamOptions(cancel_on_disconnect=True)
    call = dev.StreamCreateThreadAndRun(service.StreamCreateThreadAndRunRequest(thread_and_run=spec, options=options))
    async for event in call:
        if event.WhichOneof("payload") == "run":
            break
    call.cancel()
    wait = service.WaitRunRequest(thread_id=event.run.thread_id, run_id=event.run.id)
    return run_pb2.RunStatus.Name((await dev.WaitRun(wait, timeout=30)).status)


async def error_details(_dev, _ageing, scripted, _cutting):
    try:
        await scripted.GetRun(service.GetRunRequest(thread_id="thread_1", run_id="run_limited"))
        return "no error"
    except grpc.aio.AioRpcError as error:
        info = detail(error, error_details_pb2.ErrorInfo)
        delay = detail(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds()
        return f"{error.code().name} {info.domain} {info.reason} {info.metadata['http_status']}, again in {delay} ms"


async def large_messages(dev, _ageing, _scripted, _cutting):
    tool = tool_pb2.Tool(function=tool_pb2.FunctionDefinition(name="f", description="x" * (1 << 20)))
    spec = thread_and_run("Hello!", tools=[tool])
    run = await dev.CreateThreadAndRun(service.CreateThreadAndRunRequest(thread_and_run=spec))
    return f"{len(run.tools[0].function.description)} bytes came back"


async def unknown_enum_values(_dev, _ageing, scripted, _cutting):
    run = await scripted.GetRun(service.GetRunRequest(thread_id="thread_1", run_id="run_paused"))
    came = f"{run_pb2.RunStatus.Name(run.status)} {run.extra_json}"
    try:
        await scripted.ListRuns(service.ListRunsRequest(thread_id="thread_1", order=99))
        return f"{came}, sent: accepted"
    except grpc.aio.AioRpcError as error:
        field = detail(error, error_details_pb2.BadRequest).field_violations[0].field
        return f"{came}, sent: {error.code().name} {field}"


async def unknown_events(_dev, _ageing, scripted, _cutting):
    spec = run_pb2.RunSpec(assistant_id="asst_1")
    async for event in scripted.StreamCreateRun(service.StreamCreateRunRequest(thread_id="thread_1", run=spec)):
        if event.WhichOneof("payload") == "unknown":
            return f"{run_event_pb2.RunEventType.Name(event.type)} {event.unknown.name} {event.unknown.data}"


async def unknown_content(_dev, _ageing, scripted, _cutting):
    request = message_service_pb2.ListMessagesRequest(thread_id="thread_1", run_id="run_1")
    [message] = (await scripted.messages.ListMessages(request)).data
    text, unknown = message.content
    name = message_pb2.ContentPartType.Name(unknown.type)
    return f"{text.text.value} {name} {unknown.extra_json}"


async def deletion(dev, _ageing, _scripted, _cutting):
    thread = await dev.threads.CreateThread(thread_service_pb2.CreateThreadRequest())
    request = thread_service_pb2.DeleteThreadRequest(thread_id=thread.id)
    deleted = await dev.threads.DeleteThread(request)
    try:
        await dev.threads.GetThread(thread_service_pb2.GetThreadRequest(thread_id=thread.id))
        return f"{deleted.object}, but it is there"
    except grpc.aio.AioRpcError as error:
        return f"{deleted.object}, then {error.code().name}"


async def resuming(_dev, ageing, _scripted, _cutting):
    spec = thread_and_run("Tell me a long story.", metadata={"embedded.delay_ms": "150"})
    try:
        async for _ in ageing.StreamCreateThreadAndRun(service.StreamCreateThreadAndRunRequest(thread_and_run=spec)):
            pass
        return "the stream was not cut"
    except grpc.aio.AioRpcError as error:
        code, info = error.code().name, detail(error, error_details_pb2.ErrorInfo)
    watch = service.WatchRunRequest(thread_id=info.metadata["thread_id"], run_id=info.metadata["run_id"])
    while True:
        try:
            async for event in ageing.WatchRun(watch):
                last = event.type
            return f"{code} {info.reason}, then {run_event_pb2.RunEventType.Name(last)}"
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise


async def resumed_stream(_dev, _ageing, _scripted, cutting):
    spec = thread_and_run("Tell me a long story.", metadata={"embedded.delay_ms": "50"})
    options = service.StreamOptions(resumable=True)
    call = cutting.StreamCreateThreadAndRun(service.StreamCreateThreadAndRunRequest(thread_and_run=spec, options=options))
    events = [event async for event in resuming_stream(cutting, call)]
    text = "".join(text_of(event) for event in events)
    return f"{text} {len(events)} events, {run_event_pb2.RunEventType.Name(events[-1].type)}"


BEHAVIOURS = {
    "metadata": metadata,
    "deadline": deadline,
    "cancellation": cancellation,
    "error details": error_details,
    "1 MiB messages": large_messages,
    "unknown enum values": unknown_enum_values,
    "unknown events": unknown_events,
    "unknown content": unknown_content,
    "deletion": deletion,
    "resuming": resuming,
    "resumed stream": resumed_stream,
}


async def main():
    channels = [grpc.aio.insecure_channel(address) for address in sys.argv[1:5]]
    gateways = [Gateway(channel) for channel in channels]
    for name, behaviour in BEHAVIOURS.items():
        print(f"{name}: {await behaviour(*gateways)}", flush=True)
    for channel in channels:
        await channel.close()


asyncio.run(main())
