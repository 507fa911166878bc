"""The upstream: runs whose events are known before they are sent.

Must hold:

- The same script of a run is what its stream says and what its resources tell. A resource changes
  just before the event that tells of it is written, so that nobody reads less than was sent.
- A run goes on when its stream is cut, as everywhere.
- Each delta has a text of its own, so that each event has a name of its own.
- Who reads a stream says which process it is, in the header `REPLICA`; a stream remembers it, and
  whether it was read to its end.
"""

import asyncio
import contextlib
import dataclasses
import json
import random
import time

from aiohttp import web

REPLICA = "x-replica"


ACTION = {
    "type": "submit_tool_outputs",
    "submit_tool_outputs": {
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ]
    },
}


@dataclasses.dataclass
class Plan:
    """How a run speaks."""

    # Messages, and words in each.
    messages: int = 3
    words: int = 12
    # Seconds between two writes, on average, and events in one write, at most.
    pause: float = 0.3
    burst: int = 3
    # Bytes of a word.
    size: int = 12
    # After the first message the run waits for the output of a tool.
    tool: bool = False


class Run:
    """One run: its script, and how far it is."""

    def __init__(self, number, thread_id, plan, chance):
        self.id = f"run_{number}"
        self.thread_id = thread_id
        self.status = "queued"
        self.steps = {}
        self.messages = {}
        self.events = []
        self.plan = plan
        self.chance = chance
        # The process that reads; when the run began, when its stream broke, when the run was over.
        self.replica = ""
        self.began = time.monotonic()
        self.broken = None
        self.finished = None
        self.script = list(self.write(number))
        # What is yet to be said.
        self.rest = iter(self.script)
        # All events, by name.
        self.names = [name for name, _, _ in self.script]
        self.ids = {name.split(" ")[1] for name in self.names if "completed" in name}
        self.ids.discard(self.id)

    @property
    def is_cut(self):
        """Its stream broke before the run's last state was written."""
        return self.broken is not None

    def resource(self):
        return {
            "id": self.id,
            "object": "thread.run",
            "created_at": 1_700_000_000,
            "thread_id": self.thread_id,
            "assistant_id": "asst_1",
            "status": self.status,
            "required_action": ACTION if self.status == "requires_action" else None,
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
            if self.status == "completed"
            else None,
        }

    def write(self, number):
        """Each event: its name, what it changes, and its bytes once it has changed that."""

        def event(kind, change):
            def bytes_():
                resource = change()
                return f"event: {kind}\ndata: {json.dumps(resource)}\n\n".encode()

            return bytes_

        def run(kind, status):
            def change():
                self.status = status
                return self.resource()

            return f"{kind} {self.id}", self.id, event(kind, change)

        def kept(kind, keep, resource):
            def change():
                keep[resource["id"]] = resource
                return resource

            return f"{kind} {resource['id']}", resource["id"], event(kind, change)

        yield run("thread.run.created", "queued")
        yield run("thread.run.queued", "queued")
        yield run("thread.run.in_progress", "in_progress")
        for index in range(self.plan.messages):
            step_id, message_id = f"step_{number}_{index}", f"msg_{number}_{index}"
            step = {
                "id": step_id,
                "object": "thread.run.step",
                "created_at": 1_700_000_000,
                "run_id": self.id,
                "thread_id": self.thread_id,
                "assistant_id": "asst_1",
                "type": "message_creation",
                "status": "in_progress",
                "step_details": {
                    "type": "message_creation",
                    "message_creation": {"message_id": message_id},
                },
            }
            message = {
                "id": message_id,
                "object": "thread.message",
                "created_at": 1_700_000_000,
                "run_id": self.id,
                "thread_id": self.thread_id,
                "assistant_id": "asst_1",
                "role": "assistant",
                "status": "in_progress",
                "content": [],
            }
            words = [
                f"{index}.{word} ".ljust(self.plan.size, "x") for word in range(self.plan.words)
            ]
            text = {"type": "text", "text": {"value": "".join(words), "annotations": []}}
            yield kept("thread.run.step.created", self.steps, step)
            yield kept("thread.run.step.in_progress", self.steps, step)
            yield kept("thread.message.created", self.messages, message)
            yield kept("thread.message.in_progress", self.messages, message)
            for word in words:
                content = {"index": 0, "type": "text", "text": {"value": word}}
                delta = {
                    "id": message_id,
                    "object": "thread.message.delta",
                    "delta": {"content": [content]},
                }
                kind = "thread.message.delta"
                yield f"{kind} {message_id} {word}", "", event(kind, lambda delta=delta: delta)
            whole = {**message, "status": "completed", "content": [text]}
            yield kept("thread.message.completed", self.messages, whole)
            ended = {**step, "status": "completed"}
            yield kept("thread.run.step.completed", self.steps, ended)
            if self.plan.tool and index == 0:
                yield run("thread.run.requires_action", "requires_action")
        yield run("thread.run.completed", "completed")


class Upstream:
    """The REST API, as far as a stream and whoever looks at its run need it."""

    def __init__(self, seed=0):
        self.chance = random.Random(seed)
        self.runs = {}
        self.by_thread = {}
        # By thread, how its runs speak.
        self.plans = {}
        self.asked = 0
        self.tasks = set()

    def standing(self, number):
        """Runs that are at work and say nothing."""
        for _ in range(number):
            run = Run(len(self.runs), f"thread_{len(self.runs)}", Plan(), self.chance)
            run.status = "in_progress"
            self.runs[run.id] = run
        return list(self.runs.values())

    async def __aenter__(self):
        app = web.Application()
        app.router.add_post("/threads/{thread}/runs", self.create)
        app.router.add_get("/threads/{thread}/runs", self.list_runs)
        app.router.add_post("/threads/{thread}/runs/{run}/submit_tool_outputs", self.submit)
        app.router.add_get("/threads/{thread}/runs/{run}", self.get_run)
        app.router.add_get("/threads/{thread}/runs/{run}/steps", self.list_steps)
        app.router.add_get("/threads/{thread}/messages", self.list_messages)
        app.router.add_get("/threads/{thread}/messages/{message}", self.get_message)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_):
        for task in self.tasks:
            task.cancel()
        await self.runner.cleanup()

    async def create(self, request):
        body = await request.json()
        assert body["stream"] is True, body
        thread_id = request.match_info["thread"]
        plan = self.plans.get(thread_id, Plan())
        chance = random.Random(self.chance.random())
        run = Run(len(self.runs), thread_id, plan, chance)
        run.replica = request.headers.get(REPLICA, "")
        self.runs[run.id] = run
        self.by_thread.setdefault(thread_id, []).append(run)
        return await self.stream(run, request)

    async def submit(self, request):
        run = self.find(request)
        body = await request.json()
        assert run.status == "requires_action" and body["stream"] is True, (run.status, body)
        run.status = "in_progress"
        return await self.stream(run, request)

    async def stream(self, run, request):
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        # The run does not end with the request.
        speaking = asyncio.create_task(self.speak(run, request, response))
        self.tasks.add(speaking)
        speaking.add_done_callback(self.tasks.discard)
        await asyncio.shield(speaking)
        return response

    async def speak(self, run, request, response):
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
        is_over = False
        while not is_over:
            ready = b""
            for _ in range(run.chance.randint(1, run.plan.burst)):
                name, _, change = next(run.rest)
                ready += change()
                if run.status in ("completed", "requires_action"):
                    ready += b"event: done\ndata: [DONE]\n\n"
                    is_over = True
                    break
            if not run.is_cut:
                try:
                    if request.transport is None or request.transport.is_closing():
                        raise ConnectionResetError
                    await response.write(ready)
                except ConnectionError:
                    run.broken = time.monotonic()
            if not is_over:
                await asyncio.sleep(run.plan.pause * run.chance.uniform(0.2, 1.8))
        if run.status == "completed":
            run.finished = time.monotonic()
        with contextlib.suppress(ConnectionError):
            await response.write_eof()

    def find(self, request):
        self.asked += 1
        run = self.runs.get(request.match_info["run"])
        if run is None or run.thread_id != request.match_info["thread"]:
            raise missing()
        return run

    async def get_run(self, request):
        return web.json_response(self.find(request).resource())

    async def list_runs(self, request):
        runs = self.by_thread.get(request.match_info["thread"], [])
        return listed(request, [run.resource() for run in runs])

    async def list_steps(self, request):
        return listed(request, list(self.find(request).steps.values()))

    async def list_messages(self, request):
        runs = self.by_thread.get(request.match_info["thread"], [])
        wanted = request.query.get("run_id")
        found = [message for run in runs for message in run.messages.values()]
        return listed(request, [it for it in found if wanted in (None, it["run_id"])])

    async def get_message(self, request):
        for run in self.by_thread.get(request.match_info["thread"], []):
            if message := run.messages.get(request.match_info["message"]):
                return web.json_response(message)
        raise missing()


def listed(request, data):
    """A page of a list, which is in ascending order."""
    if request.query.get("order", "desc") == "desc":
        data = data[::-1]
    ids = [entry["id"] for entry in data]
    if (after := request.query.get("after")) in ids:
        data = data[ids.index(after) + 1 :]
    limit = int(request.query.get("limit", "20"))
    page = data[:limit]
    return web.json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(data) > limit,
        }
    )


def missing():
    error = {"message": "No such resource.", "type": "invalid_request_error", "code": None}
    return web.HTTPNotFound(
        text=json.dumps({"error": error}), content_type="application/json"
    )
