"""The fake of the REST API that `openai-responses` is, behind HTTP.

The package answers requests of one Python HTTP client inside of its own process. Here a server hands each request that it gets to that client,
and gives back what comes, as it is. What else its users do by hand is done here: an assistant and a thread are made, and a step for each run.
"""

import http.server
import json
import threading

import httpx
from openai.types.beta.threads.runs import RunStep
from openai_responses import OpenAIMock

BASE = "http://fake/v1"
HOP_BY_HOP = {"connection", "content-length", "host", "transfer-encoding"}
MOCK = OpenAIMock(base_url=BASE)
# The package's store knows no threads; connections are kept open, so each has one.
ONE_AT_A_TIME = threading.Lock()


def step(thread_id, run_id):
    details = {"type": "message_creation", "message_creation": {"message_id": "msg_1"}}
    return RunStep.model_validate(
        {
            "id": "step_1",
            "object": "thread.run.step",
            "created_at": 1,
            "assistant_id": "asst_1",
            "thread_id": thread_id,
            "run_id": run_id,
            "type": "message_creation",
            "status": "completed",
            "step_details": details,
        }
    )


class Front(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        with ONE_AT_A_TIME:
            answer = httpx.request(self.command, BASE + self.path, content=body, headers=headers)
            if self.path.endswith("/runs") and answer.is_success and self.command == "POST":
                run = answer.json()
                MOCK.state.beta.threads.runs.steps.put(step(run["thread_id"], run["id"]))
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Front)
    with MOCK.router:
        assistant = httpx.post(f"{BASE}/assistants", json={"model": "m", "name": "A"}).json()
        thread = httpx.post(f"{BASE}/threads", json={}).json()
        print(json.dumps({"port": server.server_port, "assistant_id": assistant["id"], "thread_id": thread["id"]}), flush=True)
        server.serve_forever()
