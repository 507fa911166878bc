"""`dev` on a chat-completions server that nobody here wrote. `run`, beside this file, prepares all that this needs.

The server answers by `models.json`: what is asked for, and what comes. Each function named `test_` is one test.
"""

import json
import os
import sys
import urllib.request

from runsgateway.v1 import run_event_pb2, run_pb2
from test_peers import HERE, Gateway, Process, run_tests

WEATHER = {"function": {"name": "get_weather", "parameters": '{"type":"object","properties":{"city":{"type":"string"}}}'}}


class Model(Process):
    """The server, with what it answers by; with a key it asks for that."""

    def __init__(self, *fixtures, key=""):
        words = [word for name in fixtures for word in ("-f", os.path.join(HERE, name))]
        environment = {**os.environ, "AIMOCK_API_KEYS": key} if key else None
        command = ["node", os.environ["PEERS_MODEL"], "-p", "0", *words, "--validate-on-load", "--strict"]
        super().__init__(r"listening on (http\S+)", *command, env=environment)
        self.key = key

    def ask(self, method, path, body=None):
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(self.found[1] + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()


class Outcome:
    """What the events of a stream come to."""

    def __init__(self, events):
        self.text, self.run = "", None
        for event in events:
            if event.WhichOneof("payload") == "run":
                self.run = event.run
            for part in event.message_delta.delta.content:
                self.text += part.text.value
        self.status = run_pb2.RunStatus.Name(self.run.status).removeprefix("RUN_STATUS_").lower()
        self.code = self.run.last_error.code

    def calls(self):
        return self.run.required_action.submit_tool_outputs.tool_calls


def asking(question, **more):
    messages = [{"role": "MESSAGE_ROLE_USER", "content": {"text": question}}]
    return {"threadAndRun": {"assistantId": "asst_embedded", "thread": {"messages": messages}, **more}}


def outcome(dev, question, **more):
    return Outcome(dev.call("StreamCreateThreadAndRun", asking(question, **more)))


def test_words_come_with_what_they_cost(dev, _model):
    said = outcome(dev, "hello")
    assert (said.status, said.text) == ("completed", "Hello! How can I help you today?"), said.run
    # The server counts a token in four letters.
    assert said.run.usage.completion_tokens == 8 and said.run.usage.prompt_tokens > 0, said.run.usage


def test_a_round_of_calls_is_answered(dev, _model):
    asked = outcome(dev, "What is the weather?", tools=[WEATHER])
    assert (asked.status, asked.text) == ("requires_action", "One moment."), asked.run
    calls = [(call.id, call.function.name, call.function.arguments) for call in asked.calls()]
    assert calls == [("call_a", "get_weather", '{"city":"Paris"}'), ("call_b", "get_weather", '{"city":"Rome"}')], calls
    outputs = [{"toolCallId": "call_a", "output": "sun"}, {"toolCallId": "call_b", "output": "rain"}]
    request = {"threadId": asked.run.thread_id, "runId": asked.run.id, "toolOutputs": {"toolOutputs": outputs}}
    answered = Outcome(dev.call("StreamSubmitToolOutputs", request))
    assert (answered.status, answered.text) == ("completed", "Sun in Paris, rain in Rome."), answered.run


def test_a_reply_that_ends_otherwise_says_how(dev, _model):
    rows = [
        ("long", "incomplete", "", "Once upon a time"),
        ("forbidden", "incomplete", "", "I would"),
        ("busy", "failed", "rate_limit_exceeded", ""),
        ("wrong", "failed", "invalid_prompt", ""),
        # Nothing is scripted for it.
        ("unknown", "failed", "server_error", ""),
    ]
    for question, status, code, text in rows:
        ended = outcome(dev, question)
        assert (ended.status, ended.code, ended.text) == (status, code, text), f"{question}: {ended.run}"
    cut = outcome(dev, "cut")
    whole = "This is a text of a good many words, the rest of which is cut off."
    assert (cut.status, cut.code) == ("failed", "server_error") and whole.startswith(cut.text), cut.run


def test_a_server_that_misbehaves_fails_the_run(dev, model):
    for chaos in ["malformedRate", "disconnectRate", "dropRate"]:
        model.ask("POST", "/__aimock/chaos", {chaos: 1})
        ended = outcome(dev, "hello")
        model.ask("DELETE", "/__aimock/chaos")
        assert (ended.status, ended.code, ended.text) == ("failed", "server_error", ""), f"{chaos}: {ended.run}"
    assert outcome(dev, "hello").status == "completed"


def test_a_run_is_cancelled_while_the_model_writes(dev, _model):
    events = dev.call("StreamCreateThreadAndRun", asking("slow"))
    seen = []
    for event in events:
        seen.append(event)
        if event.type == run_event_pb2.RUN_EVENT_TYPE_THREAD_RUN_IN_PROGRESS:
            dev.call("CancelRun", {"threadId": event.run.thread_id, "runId": event.run.id})
    assert Outcome(seen).status == "cancelled", seen[-1]


def test_a_key_that_the_server_does_not_know_is_said_to_be_that(_dev, model):
    dev = start_dev(model, "another key")
    try:
        ended = outcome(dev, "hello")
    finally:
        dev.end()
    assert (ended.status, ended.code) == ("failed", "invalid_prompt"), ended.run
    assert "--model-api-key-file" in ended.run.last_error.message, ended.run


def start_dev(model, key):
    path = os.path.join(os.environ["PEERS_OUT"], "model.key")
    with open(path, "w") as file:
        file.write(key)
    flags = ["--model-url", f"{model.found[1]}/v1", "--model-api-key-file", path, "--max-retries", "0"]
    return Gateway("dev", *flags)


def start(started):
    model = Model("models.json", key="the key")
    started.append(model)
    dev = start_dev(model, model.key)
    started.append(dev)
    return dev, model


if __name__ == "__main__":
    sys.exit(1 if run_tests(globals(), start) else 0)
