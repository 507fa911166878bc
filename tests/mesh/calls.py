"""Calls through Envoy, as a service in Python makes them."""

import grpc
from google.rpc import error_details_pb2, status_pb2
from runsgateway.v1 import message_pb2, run_event_pb2, run_pb2, run_service_pb2, run_service_pb2_grpc, thread_pb2

KEY = ("authorization", "Bearer any")
DEADLINE = 20
COMPLETED = run_event_pb2.RUN_EVENT_TYPE_THREAD_RUN_COMPLETED
RUN = run_service_pb2.GetRunRequest(thread_id="thread_1", run_id="run_1")


class Runs:
    """`RunService` on a channel. Retries of gRPC's own are off: those to be seen are Envoy's."""

    def __init__(self, address, credentials=None, name="gateway.example"):
        options = [("grpc.enable_retries", 0)]
        secure = credentials and grpc.aio.secure_channel(address, credentials, [*options, ("grpc.ssl_target_name_override", name)])
        self.channel = secure or grpc.aio.insecure_channel(address, options)
        self.stub = run_service_pb2_grpc.RunServiceStub(self.channel)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.channel.close()

    def get(self, request=RUN, metadata=()):
        return self.stub.GetRun(request, metadata=[KEY, *metadata], timeout=DEADLINE)

    def create(self, steering=None):
        return self.stub.CreateThreadAndRun(
            run_service_pb2.CreateThreadAndRunRequest(thread_and_run=spec(steering)), metadata=[KEY], timeout=DEADLINE
        )

    def create_with_id(self, request_id):
        """One that may be repeated, and says so to proxies."""
        request = run_service_pb2.CreateRunRequest(thread_id="thread_1", run=run_pb2.RunSpec(assistant_id="asst_1"), request_id=request_id)
        return self.stub.CreateRun(request, metadata=[KEY, ("x-repeatable-create", "true")], timeout=DEADLINE)

    def stream(self, steering=None, call_id="none"):
        request = run_service_pb2.StreamCreateThreadAndRunRequest(thread_and_run=spec(steering))
        return self.stub.StreamCreateThreadAndRun(request, metadata=[KEY, ("x-client-request-id", call_id)])

    def watch(self, thread_id, run_id, call_id="none"):
        request = run_service_pb2.WatchRunRequest(thread_id=thread_id, run_id=run_id)
        return self.stub.WatchRun(request, metadata=[KEY, ("x-client-request-id", call_id)])


def spec(steering):
    question = message_pb2.MessageInput(role="MESSAGE_ROLE_USER", content={"text": "Hello"})
    thread = thread_pb2.ThreadSpec(messages=[question])
    metadata = {"embedded.tool_rounds": "0", **(steering or {})}
    return run_pb2.ThreadAndRunSpec(assistant_id="asst_embedded", thread=thread, metadata=metadata)


async def code(call):
    """The call's status code."""
    return await call.code()


def info(error):
    """The `ErrorInfo` of an error."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                found = error_details_pb2.ErrorInfo()
                if detail.Unpack(found):
                    return found
    return error_details_pb2.ErrorInfo()
