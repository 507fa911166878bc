"""What the official Python client does with a Runs API, end to end.

The client is pointed at the API by its base URL alone. Each function below is one test; the first one that fails ends the run.
"""

import sys

import openai
from openai import AssistantEventHandler, BadRequestError, NotFoundError, OpenAI

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
QUESTION = {"role": "user", "content": "What is the weather in Paris?"}


def outputs_for(run):
    calls = run.required_action.submit_tool_outputs.tool_calls
    return [{"tool_call_id": call.id, "output": f"sunny in {call.function.arguments}"} for call in calls]


def answer_on(client, thread_id):
    return client.beta.threads.messages.list(thread_id).data[0].content[0].text.value


def test_assistants(client):
    assistant = client.beta.assistants.create(model="embedded", name="One", tools=[WEATHER], metadata={"a": "1"})
    assert client.beta.assistants.retrieve(assistant.id) == assistant
    changed = client.beta.assistants.update(assistant.id, name="Two", instructions="Be kind.")
    assert (changed.name, changed.instructions, changed.metadata) == ("Two", "Be kind.", {"a": "1"})
    assert changed.tools == assistant.tools
    assert assistant.id in [it.id for it in client.beta.assistants.list()]
    assert client.beta.assistants.delete(assistant.id).deleted


def test_threads_and_messages(client):
    thread = client.beta.threads.create(messages=[QUESTION], metadata={"a": "1"})
    assert client.beta.threads.retrieve(thread.id) == thread
    assert client.beta.threads.update(thread.id, metadata={"b": "2"}).metadata == {"b": "2"}
    messages = client.beta.threads.messages
    made = [messages.create(thread.id, role="user", content=f"message {at}") for at in range(5)]
    assert messages.retrieve(made[0].id, thread_id=thread.id) == made[0]
    # The client follows the pages by itself.
    assert [it.id for it in messages.list(thread.id, limit=2)][:5] == [it.id for it in reversed(made)]
    assert len(list(messages.list(thread.id, limit=2, order="asc"))) == 6
    assert messages.update(made[0].id, thread_id=thread.id, metadata={"c": "3"}).metadata == {"c": "3"}
    assert messages.delete(made[0].id, thread_id=thread.id).deleted
    assert client.beta.threads.delete(thread.id).deleted


def test_a_run_is_created_and_polled(client):
    assistant = client.beta.assistants.create(model="embedded")
    thread = client.beta.threads.create(messages=[QUESTION])
    runs = client.beta.threads.runs
    run = runs.create(thread.id, assistant_id=assistant.id)
    assert run.status == "queued"
    assert runs.poll(run.id, thread_id=thread.id).status == "completed"
    again = runs.create_and_poll(
        thread_id=thread.id, assistant_id=assistant.id, additional_messages=[{"role": "user", "content": "And Rome?"}]
    )
    assert again.status == "completed" and again.usage.total_tokens > 0
    assert "And Rome?" in answer_on(client, thread.id)
    assert runs.retrieve(again.id, thread_id=thread.id) == again
    assert [it.id for it in runs.list(thread.id, limit=1)] == [again.id, run.id]
    assert runs.update(again.id, thread_id=thread.id, metadata={"a": "1"}).metadata == {"a": "1"}


def test_a_run_is_cancelled(client):
    # Models that heed no metadata stay silent at these words.
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "Take your time."}])
    runs = client.beta.threads.runs
    run = runs.create(thread.id, assistant_id="asst_embedded", metadata={"embedded.scenario": "expire"})
    assert runs.cancel(run.id, thread_id=thread.id).status == "cancelling"
    assert runs.poll(run.id, thread_id=thread.id).status == "cancelled"


def test_tool_outputs_are_submitted(client):
    thread = client.beta.threads.create(messages=[QUESTION])
    runs = client.beta.threads.runs
    run = runs.create_and_poll(thread_id=thread.id, assistant_id="asst_embedded", tools=[WEATHER])
    assert run.status == "requires_action"
    run = runs.submit_tool_outputs_and_poll(run_id=run.id, thread_id=thread.id, tool_outputs=outputs_for(run))
    assert run.status == "completed"
    assert 'sunny in {"city":"Paris"}' in answer_on(client, thread.id)
    steps = list(runs.steps.list(run.id, thread_id=thread.id, limit=1))
    assert [step.type for step in steps] == ["message_creation", "tool_calls"]
    step = runs.steps.retrieve(steps[1].id, thread_id=thread.id, run_id=run.id)
    assert step == steps[1]
    assert step.step_details.tool_calls[0].function.output.startswith("sunny")


def test_errors_are_of_the_class_that_is_expected(client):
    try:
        client.beta.threads.retrieve("thread_x")
        raise AssertionError("found")
    except NotFoundError as error:
        assert (error.status_code, error.type) == (404, "invalid_request_error")
        assert error.request_id.startswith("req_")
    try:
        client.beta.threads.create(metadata={"a": 5})
        raise AssertionError("accepted")
    except BadRequestError as error:
        assert (error.code, error.param) == ("invalid_type", "metadata.a")
    try:
        client.beta.threads.create(extra_body={"colour": "red"})
        raise AssertionError("accepted")
    except BadRequestError as error:
        assert (error.code, error.param) == ("unknown_parameter", "colour")


class Recorder(AssistantEventHandler):
    """Keeps what the client's helpers make of the events."""

    def __init__(self):
        super().__init__()
        self.text = ""
        self.calls = []
        self.snapshot = None

    def on_text_delta(self, delta, snapshot):
        self.text += delta.value or ""
        assert snapshot.value == self.text

    def on_tool_call_done(self, tool_call):
        self.calls.append(tool_call)

    def on_message_done(self, message):
        self.snapshot = message


def test_runs_are_streamed(client):
    thread = client.beta.threads.create(messages=[QUESTION])
    runs = client.beta.threads.runs
    with runs.stream(thread_id=thread.id, assistant_id="asst_embedded", event_handler=Recorder()) as stream:
        stream.until_done()
    assert stream.text == answer_on(client, thread.id) == stream.snapshot.content[0].text.value
    assert stream.current_run.status == "completed"
    assert [message.id for message in stream.get_final_messages()] == [stream.snapshot.id]


def test_a_round_of_calls_is_streamed(client):
    thread = client.beta.threads.create(messages=[QUESTION])
    runs = client.beta.threads.runs
    with runs.stream(
        thread_id=thread.id,
        assistant_id="asst_embedded",
        tools=[WEATHER],
        metadata={"embedded.tool_calls": "2"},
        event_handler=Recorder(),
    ) as stream:
        run = stream.get_final_run()
    assert run.status == "requires_action"
    arguments = [call.function.arguments for call in run.required_action.submit_tool_outputs.tool_calls]
    assert [call.function.arguments for call in stream.calls] == arguments == ['{"city":"Paris"}'] * 2
    with runs.submit_tool_outputs_stream(
        run_id=run.id, thread_id=thread.id, tool_outputs=outputs_for(run), event_handler=Recorder()
    ) as stream:
        stream.until_done()
    assert stream.current_run.status == "completed"
    assert stream.text == answer_on(client, thread.id) and "sunny" in stream.text


def test_a_thread_and_run_is_streamed(client):
    with client.beta.threads.create_and_run_stream(
        assistant_id="asst_embedded", thread={"messages": [QUESTION]}, metadata={"embedded.delay_ms": "5"}
    ) as stream:
        events = [event.event for event in stream]
    assert events[:2] == ["thread.created", "thread.run.created"] and events[-1] == "thread.run.completed"
    assert events.count("thread.message.delta") > 5


def main():
    client = OpenAI(base_url=sys.argv[1], api_key="any", max_retries=0, timeout=30)
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    for name, test in tests:
        print(f"{name} ...", flush=True)
        test(client)
    print(f"openai {openai.__version__}: {len(tests)} tests passed")


if __name__ == "__main__":
    main()
