"""An upstream that does what the embedded API never does: a status, an event and a part of a message
that no contract knows, and a rate limit.

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


class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        run_id = self.path.rsplit("/", 1)[-1]
        if run_id == "run_paused":
            self.answer(200, {"id": run_id, **RUN, "status": "paused"})
        elif self.path == MESSAGES:
            self.answer(200, {"object": "list", "data": [MESSAGE], "has_more": False})
        else:
            self.answer(429, LIMITED, {"retry-after-ms": "40"})

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        frames = [f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n" for name, data in EVENTS]
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
