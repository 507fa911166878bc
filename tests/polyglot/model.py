"""A chat-completions server that says what the embedded API's built-in model says, so that what shows the one shows the other.

Its base URL is `/RxC/v1`: it asks for R rounds of C tool calls each before it answers.

Must hold: the calls of a round come interleaved, in pieces, as real services send them. "Take your time." is answered with silence.
"""

import http.server
import json

ARGUMENTS = '{"city":"Paris"}'
SILENCE = "Take your time."


def deltas(request, rounds, calls):
    """The deltas of a reply, and why it ends."""
    messages = request["messages"]
    made = sum("tool_calls" in message for message in messages)
    if request.get("tools") and made < rounds:
        name = request["tools"][0]["function"]["name"]
        for index in range(calls):
            function = {"name": name, "arguments": ""}
            yield {"tool_calls": [{"index": index, "id": f"call_{made}_{index}", "type": "function", "function": function}]}, None
        for piece in [ARGUMENTS[:5], ARGUMENTS[5:]]:
            for index in range(calls):
                yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}, None
        yield {}, "tool_calls"
        return
    text = f'This is the embedded model. You said: "{question(messages)}".'
    outputs = [message["content"] for message in messages if message["role"] == "tool"]
    names = [call["function"]["name"] for message in messages for call in message.get("tool_calls", [])]
    text += "".join(f" {name} gave: {output}." for name, output in zip(names, outputs))
    for at, word in enumerate(text.split(" ")):
        yield {"content": word if at == 0 else f" {word}"}, None
    yield {}, "stop"


def question(messages):
    return next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")


class Model(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        _, shape, *route = self.path.split("/")
        assert route == ["v1", "chat", "completions"] and request["stream"], self.path
        rounds, calls = map(int, shape.split("x"))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        if question(request["messages"]) == SILENCE:
            # Until the client leaves, which is all that it can send.
            self.wfile.flush()
            self.rfile.read(1)
            return
        for delta, reason in deltas(request, rounds, calls):
            self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
        self.event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, data):
        chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "scripted", **data}
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Model)
    server.daemon_threads = True
    print(f"rest listening on 127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
