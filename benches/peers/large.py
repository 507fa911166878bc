"""Large documents: a run of 250 kB, a list of a hundred such, a request of 1 MB. What they cost for each kB of JSON, and in memory.

Must hold: both sides carry the same JSON, which is compared with what the upstream has before anything is measured.
"""

import json
import subprocess
import time

import grpc
from runsgateway.v1 import run_pb2, run_service_pb2, run_service_pb2_grpc

from sides import PATIENCE, Gateway
from unary import RUN, RUN_ID, SPEC, THREAD, expect, h2load

# Bytes of the runs that are read; runs of a list are of the size that is read in lists.
SIZES = (2_500, 25_000, 250_000, 2_500_000)
LISTED, LIST = 250_000, 100
REQUEST = 1_000_000
# Of what clients and proxies let pass.
UNLIMITED = 1 << 30
LARGE = {"RUNS_GATEWAY_MAX_ANSWER_BYTES": str(64 << 20)}


def text(length):
    """Lines of text, with what JSON has to escape."""
    line = 'Name trains with their numbers, and say "from where" and when they leave.\n'
    return (line * (length // len(line) + 1))[:length]


def tool(number):
    """A tool of some 1,450 bytes."""
    stations = {f"station_{at}": {"type": "string", "description": f"Station {at} of the journey, by its name or its code"} for at in range(14)}
    return {"type": "function", "function": {
        "name": f"find_trains_{number}", "description": "Finds trains between stations on a day.",
        "parameters": {"type": "object", "properties": stations, "required": ["station_0", "station_1"]}}}


def run(size, number=0):
    """A run of about so many bytes: a quarter are instructions, the rest tools; 128 in one of 250 kB."""
    large = RUN | {"thread_id": thread(size), "instructions": text(size // 4), "tools": [tool(at) for at in range(size // 1953)]}
    return large | ({"id": f"{RUN_ID}{number}"} if number else {})


def thread(size):
    return f"thread_{size}"


def documents():
    """What the upstream answers with, by path."""
    compact = lambda document: json.dumps(document, separators=(",", ":"))
    runs = {f"/threads/{thread(size)}/runs/{RUN_ID}": compact(run(size)) for size in SIZES}
    listed = {"object": "list", "data": [run(LISTED, number) for number in range(1, LIST + 1)], "has_more": False}
    return runs | {list_path(): compact(listed)}


def list_path():
    return f"/threads/{thread(LISTED)}/runs"


def write(folder):
    """Files of the documents, by path, and the bodies of requests for h2load."""
    folder = folder / "documents"
    folder.mkdir(exist_ok=True)
    files = {}
    for path, document in documents().items():
        files[path] = folder / path.strip("/").replace("/", "-")
        files[path].write_text(document)
    spec = SPEC | {"instructions": text(REQUEST)}
    messages = {
        "list": run_service_pb2.ListRunsRequest(thread_id=thread(LISTED)),
        "request": run_service_pb2.CreateRunRequest(thread_id=THREAD, run=run_pb2.RunSpec(**spec)),
        **{f"run-{size}": run_service_pb2.GetRunRequest(thread_id=thread(size), run_id=RUN_ID) for size in SIZES},
    }
    for name, message in messages.items():
        body = message.SerializeToString(deterministic=True)
        (folder / name).write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
    (folder / "request.json").write_text(json.dumps(spec, separators=(",", ":")))
    return files


def check(address):
    """Makes each call as a real client does, and compares: the lengths of answers as they are framed."""
    options = [("grpc.max_receive_message_length", UNLIMITED), ("grpc.max_send_message_length", UNLIMITED)]
    lengths = {}
    with grpc.insecure_channel(address, options) as channel:
        runs = run_service_pb2_grpc.RunServiceStub(channel)
        for size in SIZES:
            got = runs.GetRun(run_service_pb2.GetRunRequest(thread_id=thread(size), run_id=RUN_ID), timeout=PATIENCE)
            same(got, run(size))
            lengths[f"run-{size}"] = 5 + got.ByteSize()
        listed = runs.ListRuns(run_service_pb2.ListRunsRequest(thread_id=thread(LISTED)), timeout=PATIENCE)
        expect("gateway: a list", len(listed.data) == LIST)
        same(listed.data[-1], run(LISTED, LIST))
        lengths["list"] = 5 + listed.ByteSize()
        spec = run_pb2.RunSpec(**SPEC | {"instructions": text(REQUEST)})
        made = runs.CreateRun(run_service_pb2.CreateRunRequest(thread_id=THREAD, run=spec), timeout=PATIENCE)
        lengths["request"] = 5 + made.ByteSize()
    return lengths


def same(got, expected):
    expect("gateway: a large run", got.id == expected["id"] and got.instructions == expected["instructions"] and got.extra_json == "")
    parameters = [json.loads(tool.function.parameters_json) for tool in got.tools]
    expect("gateway: tools", parameters == [tool["function"]["parameters"] for tool in expected["tools"]])


def plain_lengths(files):
    """The same of what passes the documents on."""
    lengths = {f"run-{size}": files[f"/threads/{thread(size)}/runs/{RUN_ID}"].stat().st_size for size in SIZES}
    return lengths | {"list": files[list_path()].stat().st_size, "request": len(json.dumps(RUN, separators=(",", ":")))}


def kilobytes(name, files):
    """The JSON of a call, in kB."""
    return REQUEST / 1000 if name == "request" else plain_lengths(files)[name] / 1000


def calls(folder, side, name, files, seconds):
    """CPU time of `side` per call, in µs: so many calls that some 400 MB go through it each second that is to be measured."""
    lengths = check(side.address) if side.name == "gateway" else plain_lengths(files)
    number = max(8, int(400_000 / kilobytes(name, files) * seconds))
    number -= number % 8
    before = side.cpu()
    load(folder, side, name, lengths[name], min(number, 20_000), 1)
    return (side.cpu() - before) / min(number, 20_000)


def load(folder, side, name, answer, number, streams):
    """Makes `number` calls on eight connections, `streams` at a time on each."""
    documents = folder / "documents"
    # Windows of 64 MiB: what is measured is not how often they are opened.
    words = [f"-m{streams}", "-w26", "-W26"]
    if side.name == "gateway":
        method = {"list": "ListRuns", "request": "CreateRun"}.get(name, "GetRun")
        words += [f"-d{documents / name}", "-Hcontent-type: application/grpc", "-Hte: trailers"]
        path = f"/runsgateway.v1.RunService/{method}"
    elif name == "request":
        words += [f"-d{documents / 'request.json'}", "-Hcontent-type: application/json"]
        path = f"/threads/{THREAD}/runs"
    else:
        path = list_path() if name == "list" else f"/threads/{thread(int(name.removeprefix('run-')))}/runs/{RUN_ID}"
    h2load(side, number, answer, words, path)


def memory(folder, upstream, name, lengths, streams, after):
    """kB of memory per call that eight connections take of a fresh gateway, `streams` at a time on each: at most, or three seconds after.

    Small calls stand before and behind them: the allocator gives back what is free when it is next asked for something.
    """
    gateway = Gateway(upstream, LARGE)
    small = lambda: load(folder, gateway, f"run-{SIZES[0]}", lengths[f"run-{SIZES[0]}"], 800, 1)
    try:
        small()
        before = gateway.memory("VmRSS")
        gateway.forget_peak()
        load(folder, gateway, name, lengths[name], 8 * streams * 5, streams)
        if after:
            time.sleep(3)
            small()
        return (gateway.memory("VmRSS" if after else "VmHWM") - before) / (8 * streams)
    finally:
        gateway.end()


def page(side, steps):
    """CPU time of a proxy per kB of a page of a run's steps."""
    path = f"/threads/steps-{steps}-0/runs/run_0/steps?limit=100&order=asc"
    said = subprocess.run(["nghttp", f"http://{side.address}{path}"], capture_output=True, timeout=PATIENCE, check=True).stdout
    expect(f"{side.name}: a page of steps", len(json.loads(said)["data"]) == 100)
    before = side.cpu()
    h2load(side, 2_000, len(said), ["-m1"], path)
    return (side.cpu() - before) / 2_000 / (len(said) / 1000)
