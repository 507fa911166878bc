"""Unary calls: their load, and whether what comes back is the run that the upstream has."""

import json
import re
import subprocess
import sys

import grpc
import transcoded_pb2
import transcoded_pb2_grpc
from runsgateway.v1 import run_pb2, run_service_pb2, run_service_pb2_grpc

from sides import LOAD, PATIENCE

THREAD, RUN_ID = "thread_J6xNq9oPzE1iSfYt3LkCwDmG", "run_5Qb1vVnT0mYkD3cXjH7aLpZe"
SPEC = {
    "assistant_id": "asst_Wc8RrUu2yQnM4sKd0FhTgBvA", "model": "gpt-4o", "instructions": "Answer in one short paragraph.",
    "metadata": {"customer": "c-20418", "channel": "web"}, "temperature": 0.5,
}
RUN = {
    "id": RUN_ID, "object": "thread.run", "created_at": 1764672000, "thread_id": THREAD, "assistant_id": SPEC["assistant_id"],
    "status": "completed", "started_at": 1764672001, "expires_at": None, "cancelled_at": None, "failed_at": None, "completed_at": 1764672009,
    "model": "gpt-4o-2024-11-20", "instructions": "You help travellers. Name trains with their numbers, and say where the times are from.",
    "tools": [
        {"type": "file_search"},
        {"type": "function", "function": {
            "name": "find_trains", "description": "Finds trains between two stations on a day.",
            "parameters": {"type": "object", "properties": {
                "from": {"type": "string", "description": "The station of departure"}, "to": {"type": "string", "description": "The station of arrival"},
                "day": {"type": "string", "description": "The day, as YYYY-MM-DD"}}, "required": ["from", "to"]}}},
    ],
    "metadata": {"customer": "c-20418", "channel": "web"}, "usage": {"prompt_tokens": 812, "completion_tokens": 96, "total_tokens": 908},
    "temperature": 0.5, "top_p": 1.0, "max_prompt_tokens": 4096, "max_completion_tokens": 1024,
    "truncation_strategy": {"type": "auto", "last_messages": None}, "tool_choice": "auto", "parallel_tool_calls": True, "response_format": "auto",
}
TEXT = json.dumps(RUN, separators=(",", ":"))


def expect(what, is_so):
    if not is_so:
        sys.exit(f"compare: {what}")


def check_gateway(address, metadata=()):
    """Calls both methods as a real client does, and compares. Returns the length of an answer as it is framed."""
    with grpc.insecure_channel(address) as channel:
        runs = run_service_pb2_grpc.RunServiceStub(channel)
        got = runs.GetRun(run_service_pb2.GetRunRequest(thread_id=THREAD, run_id=RUN_ID), timeout=PATIENCE, metadata=metadata)
        made = runs.CreateRun(run_service_pb2.CreateRunRequest(thread_id=THREAD, run=run_pb2.RunSpec(**SPEC)), timeout=PATIENCE, metadata=metadata)
    for run in (got, made):
        _check_common(run, "gateway")
        expect(f"gateway: extra_json is {run.extra_json}", run.extra_json == "")
        expect("gateway: times", (run.created_at.seconds, run.completed_at.seconds) == (RUN["created_at"], RUN["completed_at"]))
        expect("gateway: status", run_pb2.RunStatus.Name(run.status) == "RUN_STATUS_COMPLETED")
        expect("gateway: tool", json.loads(run.tools[1].function.parameters_json) == RUN["tools"][1]["function"]["parameters"])
    return 5 + got.ByteSize()


def check_envoy(address):
    """The same for Envoy, whose contract has the REST API's types."""
    with grpc.insecure_channel(address) as channel:
        runs = transcoded_pb2_grpc.RunServiceStub(channel)
        got = runs.GetRun(transcoded_pb2.GetRunRequest(thread_id=THREAD, run_id=RUN_ID), timeout=PATIENCE)
        made = runs.CreateRun(transcoded_pb2.CreateRunRequest(thread_id=THREAD, run=transcoded_pb2.RunSpec(**SPEC)), timeout=PATIENCE)
    for run in (got, made):
        _check_common(run, "envoy")
        expect("envoy: times", (run.created_at, run.completed_at, run.status) == (RUN["created_at"], RUN["completed_at"], "completed"))
        expect("envoy: tool", run.tools[1].function.parameters.properties["day"].description == "The day, as YYYY-MM-DD")
    return 5 + got.ByteSize()


def _check_common(run, side):
    for field in ("id", "object", "thread_id", "assistant_id", "model", "instructions", "temperature", "top_p", "max_prompt_tokens", "parallel_tool_calls"):
        expect(f"{side}: {field} is {getattr(run, field)!r}", getattr(run, field) == RUN[field])
    expect(f"{side}: metadata", dict(run.metadata) == RUN["metadata"])
    expect(f"{side}: usage", run.usage.total_tokens == RUN["usage"]["total_tokens"])
    expect(f"{side}: tools", run.tools[1].function.name == "find_trains")


def check_rest(address):
    """The same for what answers in JSON."""
    text = subprocess.run(["nghttp", f"http://{address}{path()}"], capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    expect(f"{address} answers {text!r}", json.loads(text) == RUN)
    return len(TEXT)


def path():
    return f"/threads/{THREAD}/runs/{RUN_ID}"


def write_bodies(folder):
    """Request bodies for h2load, each one gRPC message. Both contracts have the same."""
    for name, message in (
        ("GetRun", run_service_pb2.GetRunRequest(thread_id=THREAD, run_id=RUN_ID)),
        ("CreateRun", run_service_pb2.CreateRunRequest(thread_id=THREAD, run=run_pb2.RunSpec(**SPEC))),
    ):
        text = message.SerializeToString(deterministic=True)
        (folder / name).write_bytes(b"\0" + len(text).to_bytes(4, "big") + text)


def calls(folder, side, method, answer, seconds, rate=None, streams=16):
    """CPU time per call of `side`, in µs. At `rate` calls a second, or as many as it answers.

    Every answer has to have the length of one that was checked.
    """
    speed = _h2load(folder, side, method, answer, 4000, None, streams)
    before = side.cpu()
    number = int((rate or speed) * seconds)
    _h2load(folder, side, method, answer, number, rate, streams)
    return (side.cpu() - before) / number


def _h2load(folder, side, method, answer, number, rate, streams):
    """Makes `number` calls on eight connections; calls a second."""
    words = [f"-m{streams}"]
    if rate:
        words.append(f"--rps={rate // 8}")
    if method == "REST":
        return h2load(side, number, answer, words, path())
    package = "transcoded.v1" if side.name == "envoy" else "runsgateway.v1"
    metadata = (f"-H{name}: {value}" for name, value in getattr(side, "metadata", ()))
    words += [f"-d{folder / method}", "-Hcontent-type: application/grpc", "-Hte: trailers", *metadata]
    return h2load(side, number, answer, words, f"/{package}.RunService/{method}")


def h2load(side, number, answer, words, path):
    """Makes `number` calls on eight connections, each of whose answers has to have the length `answer`; calls a second."""
    command = ["taskset", "--cpu-list", str(LOAD), "h2load", "-t1", "-c8", f"-n{number}", *words, f"http://{side.address}{path}"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    done = int(re.search(r"(\d+) succeeded", said)[1])
    bytes_of_answers = int(re.search(r"\((\d+)\) data", said)[1])
    expect(f"{side.name}: {done} of {number} calls were answered\n{said}", done == number)
    expect(f"{side.name}: {bytes_of_answers} bytes for {number} answers of {answer}\n{said}", bytes_of_answers == number * answer)
    return float(re.search(r"([\d.]+) req/s", said)[1])
