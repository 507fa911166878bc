"""The gateway in front of REST APIs that nobody here wrote. `run`, beside this file, prepares all that this needs.

The mock server holds every request to the published schema, and answers with the official examples. So a call that is not answered with
INVALID_ARGUMENT has sent what the schema wants, and what it answers was read from official documents. The fake keeps a state.
Each function named `test_` is one test; where schema or peer are at odds with the contract, a test says how the gateway copes.
"""

import importlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import traceback

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from runsgateway.v1 import rest_pb2, run_event_pb2, run_pb2, run_service_pb2, run_service_pb2_grpc

HERE = os.path.dirname(os.path.abspath(__file__))
SCHEMA = json.load(open(os.environ["RUNS_PRISM"]))
KEY = [("authorization", "Bearer any")]
SERVICES = ["assistant_service", "message_service", "run_service", "run_step_service", "thread_service"]
MODULES = [(importlib.import_module(f"runsgateway.v1.{name}_pb2"), importlib.import_module(f"runsgateway.v1.{name}_pb2_grpc")) for name in SERVICES]
RPCS = {rpc.name: rpc for module, _ in MODULES for service in module.DESCRIPTOR.services_by_name.values() for rpc in service.methods}
# The ids of the official examples: an answer about another resource is not passed on.
THREAD = {"threadId": "thread_abc123"}
RUN = {**THREAD, "runId": "run_abc123"}
SUBMITTED = {**THREAD, "runId": "run_123"}
ASSISTANT = {"assistantId": "asst_abc123"}
CHANGED_ASSISTANT = {"assistantId": "asst_123"}
MESSAGE = {**THREAD, "messageId": "msg_abc123"}
PAGE = {"limit": 100, "order": "SORT_ORDER_ASC", "after": "a b/c", "before": "z"}
INCLUDE = ["step_details.tool_calls[*].file_search.results[*].content"]
MESSAGES = [
    {
        "role": "MESSAGE_ROLE_USER",
        "content": {
            "parts": [
                {"text": "What is this?"},
                {"imageFile": {"fileId": "file_1", "detail": "IMAGE_DETAIL_LOW"}},
                {"imageUrl": {"url": "https://images.test/a.png", "detail": "IMAGE_DETAIL_HIGH"}},
            ]
        },
        "attachments": [{"fileId": "file_1", "tools": [{"type": "TOOL_TYPE_CODE_INTERPRETER"}, {"type": "TOOL_TYPE_FILE_SEARCH"}]}],
        "metadata": {"a": "1"},
    },
    {"role": "MESSAGE_ROLE_ASSISTANT", "content": {"text": "A picture."}},
]
FUNCTION = {"name": "get_weather", "description": "The weather.", "parameters": '{"type":"object","properties":{}}', "strict": True}
SEARCH = {"maxNumResults": 5, "rankingOptions": {"ranker": "auto", "scoreThreshold": 0.5}}
RESOURCES = {"codeInterpreter": {"fileIds": ["file_1"]}, "fileSearch": {"vectorStoreIds": ["vs_1"]}}
# What the bodies of both creations have.
SPEC = {
    "assistantId": "asst_1",
    "model": "gpt-4o",
    "instructions": "Be kind.",
    "tools": [{"type": "TOOL_TYPE_CODE_INTERPRETER"}, {"fileSearch": SEARCH}, {"function": FUNCTION}],
    "metadata": {"a": "1"},
    "temperature": 0.5,
    "topP": 0.5,
    "maxPromptTokens": "256",
    "maxCompletionTokens": "256",
    "truncationStrategy": {"type": "TRUNCATION_STRATEGY_TYPE_LAST_MESSAGES", "lastMessages": "3"},
    "toolChoice": {"type": "TOOL_TYPE_FUNCTION", "function": {"name": "get_weather"}},
    "parallelToolCalls": False,
    "responseFormat": {
        "type": "RESPONSE_FORMAT_TYPE_JSON_SCHEMA",
        "jsonSchema": {"name": "answer", "description": "An answer.", "schema": '{"type":"object"}', "strict": True},
    },
}
RUN_SPEC = {
    **SPEC,
    "reasoningEffort": "low",
    "additionalInstructions": "Be brief.",
    "additionalMessages": MESSAGES,
}
THREAD_AND_RUN_SPEC = {
    **SPEC,
    "thread": {"messages": MESSAGES, "toolResources": RESOURCES, "metadata": {"a": "1"}},
    "toolResources": RESOURCES,
}
OUTPUTS = {"toolOutputs": [{"toolCallId": "call_1", "output": "sunny"}, {"toolCallId": "call_2", "output": ""}]}
METADATA = {"metadata": {"a": "1"}}
ASSISTANT_SPEC = {
    **{name: SPEC[name] for name in ("model", "instructions", "tools", "metadata", "temperature", "topP", "responseFormat")},
    "name": "Tutor",
    "description": "Helps.",
    "reasoningEffort": "low",
    "toolResources": RESOURCES,
}
# All operations: minimal requests, and those in which every field is set.
REQUESTS = [
    ("CreateRun", {"threadId": "thread_abc", "run": {"assistantId": "asst_1"}}),
    ("CreateRun", {"threadId": "thread_abc", "run": RUN_SPEC, "include": INCLUDE}),
    ("CreateThreadAndRun", {"threadAndRun": {"assistantId": "asst_1"}}),
    ("CreateThreadAndRun", {"threadAndRun": THREAD_AND_RUN_SPEC}),
    ("ListRuns", {"threadId": "thread_abc"}),
    ("ListRuns", {"threadId": "thread_abc", **PAGE}),
    ("GetRun", RUN),
    ("ModifyRun", {**RUN, "run": {}}),
    ("ModifyRun", {**RUN, "run": {"metadata": {"a": "1"}}}),
    ("SubmitToolOutputs", {**SUBMITTED, "toolOutputs": OUTPUTS}),
    ("CancelRun", RUN),
    ("ListRunSteps", RUN),
    ("ListRunSteps", {**RUN, **PAGE, "include": INCLUDE}),
    ("GetRunStep", {**RUN, "stepId": "step_abc123"}),
    ("GetRunStep", {**RUN, "stepId": "step_abc123", "include": INCLUDE}),
    ("CreateAssistant", {"assistant": {"model": "gpt-4o"}}),
    ("CreateAssistant", {"assistant": ASSISTANT_SPEC}),
    ("ListAssistants", {}),
    ("ListAssistants", PAGE),
    ("GetAssistant", ASSISTANT),
    ("ModifyAssistant", {**CHANGED_ASSISTANT, "assistant": {}}),
    ("ModifyAssistant", {**CHANGED_ASSISTANT, "assistant": ASSISTANT_SPEC}),
    ("DeleteAssistant", ASSISTANT),
    ("CreateThread", {}),
    ("CreateThread", {"thread": {}}),
    ("CreateThread", {"thread": {"messages": MESSAGES, "toolResources": RESOURCES, **METADATA}}),
    ("GetThread", THREAD),
    ("ModifyThread", {**THREAD, "thread": {}}),
    ("ModifyThread", {**THREAD, "thread": {"toolResources": RESOURCES, **METADATA}}),
    ("DeleteThread", THREAD),
    ("CreateMessage", {**THREAD, "message": MESSAGES[1]}),
    ("CreateMessage", {**THREAD, "message": MESSAGES[0]}),
    ("ListMessages", THREAD),
    ("ListMessages", {**THREAD, **PAGE, "runId": "run_abc123"}),
    ("GetMessage", MESSAGE),
    ("ModifyMessage", {**MESSAGE, "message": {}}),
    ("ModifyMessage", {**MESSAGE, "message": METADATA}),
    ("DeleteMessage", MESSAGE),
]
STREAMS = [
    ("StreamCreateRun", {"threadId": "thread_abc", "run": RUN_SPEC}, "/threads/{thread_id}/runs"),
    ("StreamCreateThreadAndRun", {"threadAndRun": THREAD_AND_RUN_SPEC}, "/threads/runs"),
    ("StreamSubmitToolOutputs", {**RUN, "toolOutputs": OUTPUTS}, "/threads/{thread_id}/runs/{run_id}/submit_tool_outputs"),
]


def message(method, request):
    return ParseDict(request, GetMessageClass(RPCS[method].input_type)())


def unknown(answer, path=""):
    """The paths of the messages that have something in `extra_json`."""
    for field, value in answer.ListFields():
        if field.name == "extra_json":
            yield f"{path}: {value}"
        elif field.type == FieldDescriptorProto.TYPE_MESSAGE and not field.message_type.GetOptions().map_entry:
            for one in value if hasattr(value, "append") else [value]:
                yield from unknown(one, f"{path}.{field.name}")


class Process:
    """A process of which one line says that it is ready."""

    def __init__(self, ready, *words, env=None):
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            self.found = re.search(ready, line)
            if self.found:
                break
        else:
            raise AssertionError(f"{words} ended:\n{''.join(self.lines)}")
        threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True).start()

    def end(self):
        self.process.terminate()
        self.process.wait(timeout=30)


class Gateway(Process):
    def __init__(self, command, *flags):
        words = [command, "--log", "warn", "--listen", "127.0.0.1:0", *flags]
        super().__init__(r"grpc listening on (\S+)", os.environ["RUNS_GATEWAY_BIN"], *words)
        self.channel = grpc.insecure_channel(self.found[1])
        names = [(stubs, f"{service}Stub") for module, stubs in MODULES for service in module.DESCRIPTOR.services_by_name]
        self.stubs = [getattr(stubs, name)(self.channel) for stubs, name in names]

    def call(self, method, request):
        """A unary answer, or the call of a stream."""
        stub = next(stub for stub in self.stubs if hasattr(stub, method))
        return getattr(stub, method)(message(method, request), metadata=KEY, timeout=30)

    def events(self, method, request):
        """The events of a stream, and the error that it ended with."""
        events = []
        try:
            for event in self.call(method, request):
                events.append(event)
        except grpc.RpcError as error:
            return events, error
        return events, None


def reason(error):
    found = error_details_pb2.ErrorInfo()
    packed = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
    for detail in status_pb2.Status.FromString(packed).details:
        detail.Unpack(found)
    return found.reason


def failure(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call did not fail")


def example_events(path, example):
    """The events of an official example: name, data, and whether the data is JSON."""
    text = SCHEMA["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["examples"][example]["value"]
    for frame in re.split(r"\n\n+", text.strip()):
        # Lines without a field (`...`), and an event without data, are nothing in an event stream.
        lines = dict(re.findall(r"^(event|data): (.*)$", frame, re.MULTILINE))
        if "data" not in lines:
            continue
        if lines["event"] == "done":
            return
        try:
            json.loads(lines["data"])
            yield lines["event"], lines["data"], True
        except ValueError:
            yield lines["event"], lines["data"], False


def test_full_requests_set_every_field_of_every_call(_schema, _functions, _fake):
    calls = {name for name, rpc in RPCS.items() if not rpc.server_streaming} - {"WaitRun"}
    assert calls == {method for method, _ in REQUESTS}, calls ^ {method for method, _ in REQUESTS}
    assert len(calls) == 23
    wanted, found = set(), set()
    for method, request in REQUESTS:
        whole = message(method, request)
        body = RPCS[method].GetOptions().Extensions[rest_pb2.rest].body
        for part in [whole] + ([getattr(whole, body)] if body else []):
            wanted |= {(method, part.DESCRIPTOR.name, field.name) for field in part.DESCRIPTOR.fields}
            found |= {(method, part.DESCRIPTOR.name, field.name) for field, _ in part.ListFields()}
    # `extra_json` is for what the schema does not have; the others are the gateway's own, or Azure's.
    others = {"extra_json", "request_id", "on_active_run", "tool_approvals"}
    assert {name for _, _, name in wanted - found} <= others, wanted - found


def test_every_request_of_all_operations_is_what_the_schema_wants(schema, _functions, _fake):
    for method, request in REQUESTS:
        try:
            answer = schema.call(method, request)
        except grpc.RpcError as error:
            raise AssertionError(f"{method} {request}") from error
        ids = [item.id for item in answer.data] if hasattr(answer, "data") else [answer.id]
        assert ids and all(ids), f"{method}: {answer}"
        # What answers is an official example. One has a member that its schema does not have.
        known = [': {"file_ids":[]}'] if method == "ModifyMessage" else []
        assert list(unknown(answer)) == known, f"{method}: {list(unknown(answer))}"


def test_a_request_that_the_schema_does_not_want_is_refused(schema, _functions, _fake):
    # Else the test above would prove nothing.
    wrong = [
        ("CreateRun", {"threadId": "thread_abc", "run": {"assistantId": "asst_1", "extraJson": '{"colour":"red"}'}}),
        ("CreateRun", {"threadId": "thread_abc", "run": {"model": "m"}}),
        ("CreateRun", {"threadId": "thread_abc", "run": {"assistantId": "asst_1", "temperature": 3}}),
        ("CreateAssistant", {"assistant": {"name": "Tutor"}}),
        ("ModifyAssistant", {**CHANGED_ASSISTANT, "assistant": {"topP": 2}}),
        ("CreateThread", {"thread": {"messages": [{"role": "MESSAGE_ROLE_USER"}]}}),
        ("ModifyThread", {**THREAD, "thread": {"extraJson": '{"colour":"red"}'}}),
        ("CreateMessage", {**THREAD, "message": {"content": {"text": "hello"}}}),
        ("ModifyMessage", {**MESSAGE, "message": {"extraJson": '{"colour":"red"}'}}),
    ]
    for method, request in wrong:
        error = failure(lambda: schema.call(method, request))
        assert (error.code(), reason(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"), f"{method}: {error}"


def check_stream(events, path, example):
    """Every event of the example has come, in its order; what is not JSON came whole, as an unknown event."""
    expected = list(example_events(path, example))
    assert len(events) >= len(expected), f"{len(events)} of {len(expected)} events"
    malformed = 0
    for event, (name, data, whole) in zip(events, expected):
        kind = run_event_pb2.RunEventType.Name(event.type)
        if whole:
            assert kind == f"RUN_EVENT_TYPE_{name.replace('.', '_').upper()}", f"{kind} for {name}"
            payload = getattr(event, event.WhichOneof("payload"))
            assert payload.id == json.loads(data)["id"] and not payload.extra_json, payload
        else:
            malformed += 1
            assert (event.unknown.name, event.unknown.data) == (name, data), event
    return malformed


def test_the_official_event_streams_come_through(schema, _functions, _fake):
    malformed = 0
    for method, request, path in STREAMS:
        events, error = schema.events(method, request)
        malformed += check_stream(events, path, "Streaming")
        # The official examples have a brace too many in the events of runs, or no `data:`. What the last one says is lost on the gateway, so
        # it reads the run; the mock server answers with its example, which is another run than that of the events, unless that is asked for.
        if error is None:
            last = events[-1]
            assert last.synthesized and last.run.id == "run_abc123", last
        else:
            assert (error.code(), reason(error)) == (grpc.StatusCode.INTERNAL, "UNUSABLE_ANSWER"), error
    assert malformed > 0, "the examples are mended: this test can say less"


def test_a_stream_whose_run_cannot_be_read_ends_with_what_came_and_an_error(_schema, functions, _fake):
    for method, request, path in STREAMS[:2]:
        events, error = functions.events(method, request)
        assert check_stream(events, path, "StreamingwithFunctions") > 0
        # This gateway asks the mock server for an example that it does not have for reading a run.
        assert (error.code(), reason(error)) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND"), error


def test_a_mock_server_without_an_error_body_of_the_api_is_understood_by_its_status(schema, _functions, _fake):
    request = run_service_pb2.GetRunRequest(thread_id="thread_abc", run_id="run_abc")
    error = failure(lambda: run_service_pb2_grpc.RunServiceStub(schema.channel).GetRun(request, timeout=30))
    assert (error.code(), reason(error)) == (grpc.StatusCode.UNAUTHENTICATED, "INVALID_API_KEY"), error


def test_the_fake_creates_reads_changes_and_cancels_runs(_schema, _functions, fake):
    thread, spec = fake.seeds["thread_id"], {"assistantId": fake.seeds["assistant_id"]}
    # It answers 201 where the schema says 200.
    run = fake.call("CreateRun", {"threadId": thread, "run": {**spec, "metadata": {"a": "1"}}})
    assert run_pb2.RunStatus.Name(run.status) == "RUN_STATUS_QUEUED" and run.metadata == {"a": "1"}
    where = {"threadId": thread, "runId": run.id}
    assert fake.call("GetRun", where).id == run.id
    # Its lists have no `object`.
    assert [item.id for item in fake.call("ListRuns", {"threadId": thread}).data] == [run.id]
    assert fake.call("ModifyRun", {**where, "run": {"metadata": {"b": "2"}}}).metadata["b"] == "2"
    assert [step.id for step in fake.call("ListRunSteps", where).data] == ["step_1"]
    assert fake.call("GetRunStep", {**where, "stepId": "step_1"}).run_id == run.id
    assert fake.call("SubmitToolOutputs", {**where, "toolOutputs": OUTPUTS}).id == run.id
    assert run_pb2.RunStatus.Name(fake.call("CancelRun", where).status) == "RUN_STATUS_CANCELLING"
    assert run_pb2.RunStatus.Name(fake.call("WaitRun", where).status) == "RUN_STATUS_CANCELLED"
    made = fake.call("CreateThreadAndRun", {"threadAndRun": {**spec, "thread": {"messages": MESSAGES[1:]}}})
    assert made.thread_id not in ("", thread)


def test_the_fake_creates_reads_changes_and_deletes_assistants_threads_and_messages(_schema, _functions, fake):
    def life(kind, create, where, update):
        """Makes one, reads, lists, changes and deletes it."""
        made = fake.call(f"Create{kind}", create)
        one = {**where, f"{kind.lower()}Id": made.id}
        assert fake.call(f"Get{kind}", one) == made
        if kind != "Thread":
            assert made.id in [item.id for item in fake.call(f"List{kind}s", where).data]
        assert fake.call(f"Modify{kind}", {**one, kind.lower(): update}).metadata["b"] == "2"
        gone = fake.call(f"Delete{kind}", one)
        assert (gone.id, gone.deleted) == (made.id, True), gone
        # The fake has no error bodies: see below.
        assert failure(lambda: fake.call(f"Get{kind}", one)).code() == grpc.StatusCode.UNIMPLEMENTED
        return made

    changed = {"metadata": {"b": "2"}}
    assert life("Assistant", {"assistant": {"model": "m", "name": "Tutor"}}, {}, changed).name == "Tutor"
    life("Thread", {"thread": METADATA}, {}, changed)
    where = {"threadId": fake.seeds["thread_id"]}
    message = life("Message", {**where, "message": MESSAGES[1]}, where, changed)
    assert message.content[0].text.value == "A picture."


def test_a_stream_of_an_api_that_does_not_stream_is_made_by_polling(_schema, _functions, fake):
    request = {"threadId": fake.seeds["thread_id"], "run": {"assistantId": fake.seeds["assistant_id"]}}
    events = fake.call("StreamCreateRun", request)
    first = next(events)
    assert first.synthesized and first.run.id
    fake.call("CancelRun", {"threadId": first.run.thread_id, "runId": first.run.id})
    last = [first, *events][-1]
    assert last.type == run_event_pb2.RUN_EVENT_TYPE_THREAD_RUN_CANCELLED, last


def test_an_empty_404_is_said_to_be_a_missing_route(_schema, _functions, fake):
    # The fake has no error bodies, so nothing tells a missing run from a missing route.
    error = failure(lambda: fake.call("GetRun", {"threadId": fake.seeds["thread_id"], "runId": "run_nowhere"}))
    assert (error.code(), reason(error)) == (grpc.StatusCode.UNIMPLEMENTED, "ROUTE_NOT_FOUND"), error


def free_port():
    """The mock server does not say which port it took."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def start(started):
    """The gateways that the tests ask, and behind them who answers."""
    prism = Process(r"listening on (http\S+)", "node", sys.argv[1], "mock", "-h", "127.0.0.1", "-p", free_port(), os.environ["RUNS_PRISM"])
    started.append(prism)
    front = Process(r"^(\{.*\})$", sys.executable, "-W", "ignore", os.path.join(HERE, "front.py"))
    started.append(front)
    seeds = json.loads(front.found[1])
    mock, fake = prism.found[1], f"http://127.0.0.1:{seeds['port']}"
    for url, *flags in [(mock,), (mock, "--upstream-header", "Prefer: example=StreamingwithFunctions"), (fake,)]:
        started.append(Gateway("serve", "--upstream-url", url, *flags))
    gateways = started[-3:]
    gateways[-1].seeds = seeds
    return gateways


def run_tests(module, start):
    """Runs the tests of a module on what `start` starts. How many failed."""
    started, failed = [], 0
    tests = {name: test for name, test in module.items() if name.startswith("test_")}
    try:
        given = start(started)
        for name, test in tests.items():
            try:
                test(*given)
                print(f"{name} ... ok", flush=True)
            except Exception:  # whatever it is, the other tests are to be run
                failed += 1
                print(f"{name} ... FAILED\n{traceback.format_exc()}", flush=True)
    finally:
        for process in reversed(started):
            process.end()
    print(f"\n{len(tests) - failed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(1 if run_tests(globals(), start) else 0)
