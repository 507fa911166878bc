"""A stream of a run that goes on where it broke, on whichever replica answers; to copy from."""

import asyncio
import time

import grpc
from google.rpc import error_details_pb2, status_pb2
from runsgateway.v1 import run_service_pb2

BROKEN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED}


async def resuming(runs, events, max_resumes=8, max_outage=60, **call):
    """Each event of `events` once: a stream that was asked for with `options.resumable`.

    Where it breaks it is resumed, `max_resumes` times in a row and for `max_outage` seconds at most; an event that has a position begins
    a new row. `call` goes along with each resume, such as `metadata`.
    """
    place, resumes, until = run_service_pb2.ResumeRunRequest(), 0, 0
    while True:
        try:
            async for event in events:
                if event.WhichOneof("payload") == "run":
                    place.thread_id, place.run_id = event.run.thread_id, event.run.id
                if event.position:
                    place.after_position, resumes = event.position, 0
                yield event
            return
        except grpc.aio.AioRpcError as error:
            # An error may name the run before any event has. What nobody names cannot be resumed.
            if not place.run_id:
                names = names_of(error)
                place.thread_id, place.run_id = names.get("thread_id", ""), names.get("run_id", "")
            until = until if resumes else time.monotonic() + max_outage
            if error.code() not in BROKEN or not place.run_id or resumes == max_resumes or time.monotonic() > until:
                raise
        await asyncio.sleep(min(0.1 * 2**resumes, 5))
        resumes += 1
        events = runs.ResumeRun(place, **call)


def names_of(error):
    """What the `ErrorInfo` of an error names."""
    info = error_details_pb2.ErrorInfo()
    packed = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    any(detail.Unpack(info) for detail in status_pb2.Status.FromString(packed).details)
    return info.metadata
