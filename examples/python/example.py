"""Runs from Python, with grpc.aio: make all that a run needs and read its answer; stream a run,
answer its tool calls, wait for one, read errors, page through steps.

The only argument is the gateway's address; without it, the one that `runs-gateway dev` takes by default.
"""

import asyncio
import json
import sys

import grpc
from google.rpc import error_details_pb2, status_pb2
from runsgateway.v1 import assistant_pb2, assistant_service_pb2, assistant_service_pb2_grpc
from runsgateway.v1 import message_pb2, message_service_pb2, message_service_pb2_grpc
from runsgateway.v1 import run_event_pb2, run_pb2, run_service_pb2, run_service_pb2_grpc
from runsgateway.v1 import run_step_pb2, run_step_service_pb2, run_step_service_pb2_grpc
from runsgateway.v1 import thread_pb2, thread_service_pb2, thread_service_pb2_grpc, tool_pb2

WEATHER = tool_pb2.Tool(
    function=tool_pb2.FunctionDefinition(
        name="get_weather",
        description="The weather in a city.",
        parameters_json='{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}',
    )
)


def user_message(text):
    content = message_pb2.MessageContent(text=text)
    return message_pb2.MessageInput(role=message_pb2.MESSAGE_ROLE_USER, content=content)


def thread_and_run(question, **run):
    """A thread with one message, and a run on it."""
    thread = thread_pb2.ThreadSpec(messages=[user_message(question)])
    return run_pb2.ThreadAndRunSpec(assistant_id="asst_embedded", thread=thread, **run)


def create(question, **run):
    return run_service_pb2.CreateThreadAndRunRequest(thread_and_run=thread_and_run(question, **run))


def text_of(event):
    """What an event adds to the text of the answer."""
    return "".join(part.text.value for part in event.message_delta.delta.content)


async def from_nothing_to_an_answer(assistants, threads, messages, runs):
    print("from nothing to an answer")
    spec = assistant_pb2.AssistantSpec(model="gpt-4o-mini", instructions="Be brief.")
    request = assistant_service_pb2.CreateAssistantRequest(assistant=spec)
    assistant = await assistants.CreateAssistant(request)
    thread = await threads.CreateThread(thread_service_pb2.CreateThreadRequest())
    message = user_message("What can you do?")
    request = message_service_pb2.CreateMessageRequest(thread_id=thread.id, message=message)
    await messages.CreateMessage(request)
    spec = run_pb2.RunSpec(assistant_id=assistant.id)
    run = await runs.CreateRun(run_service_pb2.CreateRunRequest(thread_id=thread.id, run=spec))
    run = await runs.WaitRun(run_service_pb2.WaitRunRequest(thread_id=thread.id, run_id=run.id))
    print(f"  {run_pb2.RunStatus.Name(run.status)}")
    request = message_service_pb2.ListMessagesRequest(thread_id=thread.id, run_id=run.id)
    page = await messages.ListMessages(request)
    for message in page.data:
        print(f"  {''.join(part.text.value for part in message.content)}")
    # A thread's messages go with it.
    thread = await threads.DeleteThread(thread_service_pb2.DeleteThreadRequest(thread_id=thread.id))
    request = assistant_service_pb2.DeleteAssistantRequest(assistant_id=assistant.id)
    assistant = await assistants.DeleteAssistant(request)
    print(f"  {thread.object}, {assistant.object}")


async def stream_a_run(runs):
    print("stream a run")
    answer = ""
    spec = thread_and_run("Hello from afar!")
    async for event in runs.StreamCreateThreadAndRun(run_service_pb2.StreamCreateThreadAndRunRequest(thread_and_run=spec)):
        answer += text_of(event)
        if event.WhichOneof("payload") == "run":
            print(f"  {run_event_pb2.RunEventType.Name(event.type)}")
    print(f"  {answer}")


async def answer_tool_calls(runs):
    print("answer tool calls")
    spec = thread_and_run("What is the weather in Paris?", tools=[WEATHER], metadata={"embedded.tool_rounds": "2"})
    conversation = runs.ConverseRun()
    start = run_service_pb2.ConverseStart(thread_and_run=spec)
    await conversation.write(run_service_pb2.ConverseRunRequest(start=start))
    answer, run = "", None
    async for event in conversation:
        answer += text_of(event)
        if event.WhichOneof("payload") == "run":
            run = event.run
        if event.type == run_event_pb2.RUN_EVENT_TYPE_THREAD_RUN_REQUIRES_ACTION:
            outputs = run_pb2.ToolOutputs()
            for call in run.required_action.submit_tool_outputs.tool_calls:
                print(f"  {call.function.name}({call.function.arguments})")
                city = json.loads(call.function.arguments)["city"]
                outputs.tool_outputs.add(tool_call_id=call.id, output=f"sunny in {city}")
            await conversation.write(run_service_pb2.ConverseRunRequest(tool_outputs=outputs))
    print(f"  {answer}")
    return run


async def wait_with_a_deadline(runs):
    print("wait for a run with a deadline")
    # Left alone, this run says nothing for ten minutes.
    run = await runs.CreateThreadAndRun(create("Take your time.", metadata={"embedded.scenario": "expire"}))
    wait = run_service_pb2.WaitRunRequest(thread_id=run.thread_id, run_id=run.id)
    try:
        await runs.WaitRun(wait, timeout=0.3)
    except grpc.aio.AioRpcError as error:
        print(f"  {error.code().name}")
    await runs.CancelRun(run_service_pb2.CancelRunRequest(thread_id=run.thread_id, run_id=run.id))
    run = await runs.WaitRun(wait, timeout=30)
    print(f"  {run_pb2.RunStatus.Name(run.status)}")


def describe(error):
    """An error's code, and what its details say."""
    info, said = "", ""
    packed = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
    for detail in status_pb2.Status.FromString(packed).details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value).reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            for violation in error_details_pb2.BadRequest.FromString(detail.value).field_violations:
                said += f", {violation.field} {violation.description}"
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            said += f", again in {delay.ToMilliseconds()} ms"
    return f"{error.code().name}, {info}{said}"


async def read_error_details(runs):
    print("read error details")
    calls = [
        runs.GetRun(run_service_pb2.GetRunRequest(run_id="run_1")),
        runs.GetRun(run_service_pb2.GetRunRequest(thread_id="thread_nowhere", run_id="run_1")),
        runs.CreateThreadAndRun(create("Are you busy?", metadata={"embedded.refuse": "429"})),
    ]
    for call in calls:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            print(f"  {describe(error)}")


async def page_through_steps(steps, run):
    print("page through steps")
    request = run_step_service_pb2.ListRunStepsRequest(thread_id=run.thread_id, run_id=run.id, limit=2)
    while True:
        page = await steps.ListRunSteps(request)
        print(f"  {', '.join(run_step_pb2.RunStepType.Name(step.type) for step in page.data)}")
        if not page.has_more:
            return
        request.after = page.last_id


async def main():
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
    async with grpc.aio.insecure_channel(address) as channel:
        runs = run_service_pb2_grpc.RunServiceStub(channel)
        steps = run_step_service_pb2_grpc.RunStepServiceStub(channel)
        assistants = assistant_service_pb2_grpc.AssistantServiceStub(channel)
        threads = thread_service_pb2_grpc.ThreadServiceStub(channel)
        messages = message_service_pb2_grpc.MessageServiceStub(channel)
        await from_nothing_to_an_answer(assistants, threads, messages, runs)
        await stream_a_run(runs)
        run = await answer_tool_calls(runs)
        await wait_with_a_deadline(runs)
        await read_error_details(runs)
        await page_through_steps(steps, run)


if __name__ == "__main__":
    asyncio.run(main())
