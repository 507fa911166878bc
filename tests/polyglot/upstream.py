"""An upstream that does what the embedded API never does: a status, an event and a part of a message
that no contract knows, a rate limit, and a run whose tools need approvals.

Must hold: `x-request-id` is made of the request's `x-client-request-id`, so that a client sees that its metadata went all the way.
"""

import http.server
import json

RUN = {"object": "thread.run", "created_at": 1, "thread_id": "thread_1", "assistant_id": "asst_1"}
LIMITED = {"error": {"message": "Slow down.", "type": "requests", "param": None, "code": "rate_limit_exceeded"}}
# The messages of run_1, and of no other.
MESSAGES = "/threads/thread_1/messages?run_id=run_1"
CONTENT = [
    {"type": "text", "text": {"value": "Here:", "annotations": []}},
    {"type": "hologram", "hologram": {"depth": 3}},
]
MESSAGE = {"id": "msg_1", "object": "thread.message", "role": "assistant", "content": CONTENT}
EVENTS = [
    ("thread.run.created", {"id": "run_1", **RUN, "status": "queued"}),
    ("thread.run.rested", {"id": "run_1", "for": "a while"}),
    ("thread.run.completed", {"id": "run_1", **RUN, "status": "completed"}),
]
# A thread that is made with its run has one whose tools need approvals.
CALLS = [("search", {"query": "news"}), ("delete_page", {"page": "home"})]
ASKED = [
    {"id": f"call_{name}", "type": "mcp", "name": name, "arguments": json.dumps(arguments, separators=(",", ":")), "server_label": "docs"}
    for name, arguments in CALLS
]
APPROVAL = {"type": "submit_tool_approval", "submit_tool_approval": {"tool_calls": ASKED}}
WAITING = {"id": "run_approval", **RUN, "status": "requires_action", "required_action": APPROVAL}


def approved(approvals):
    """The events of the run after its approvals. What the tools gave says what was approved, with which headers."""
    [search, delete] = approvals
    given = f"search gave 2 pages for {search['headers']['authorization']}" if search["approve"] else "search was refused"
    text = f"{given}, delete_page was {'approved' if delete['approve'] else 'refused'}."
    content = [{"index": 0, "type": "text", "text": {"value": text}}]
    return [
        ("thread.run.in_progress", {"id": "run_approval", **RUN, "status": "in_progress"}),
        ("thread.message.delta", {"id": "msg_2", "object": "thread.message.delta", "delta": {"content": content}}),
        ("thread.run.completed", {"id": "run_approval", **RUN, "status": "completed"}),
    ]


class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        run_id = self.path.rsplit("/", 1)[-1]
        if run_id == "run_paused":
            self.answer(200, {"id": run_id, **RUN, "status": "paused"})
        elif run_id == "run_approval":
            self.answer(200, WAITING)
        elif self.path == MESSAGES:
            self.answer(200, {"object": "list", "data": [MESSAGE], "has_more": False})
        else:
            self.answer(429, LIMITED, {"retry-after-ms": "40"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
        if self.path == "/threads/runs":
            events = [("thread.run.requires_action", WAITING)]
        elif self.path.endswith("/submit_tool_outputs"):
            events = approved(body["tool_approvals"])
        else:
            events = EVENTS
        frames = [f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n" for name, data in events]
        text = "".join(frames) + "event: done\ndata: [DONE]\n\n"
        self.send(200, text.encode(), {"content-type": "text/event-stream"})

    def answer(self, status, body, headers=None):
        self.send(status, json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})})

    def send(self, status, body, headers):
        self.send_response(status)
        request_id = f"req_{self.headers.get('x-client-request-id', 'none')}"
        for name, value in {**headers, "x-request-id": request_id, "content-length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    print(f"rest listening on 127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
