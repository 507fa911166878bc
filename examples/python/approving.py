"""A run whose tools are those of MCP servers, with the calls approved or refused in a conversation.

The arguments: the gateway's address, and an assistant that has such tools. This one may search, and do nothing else.
"""

import asyncio
import sys

import grpc
from runsgateway.v1 import message_pb2, run_event_pb2, run_pb2, run_service_pb2, run_service_pb2_grpc, thread_pb2

from example import text_of

ALLOWED = {"search"}


def decide(call):
    """The approval of one call. Headers that the MCP server wants are given with it."""
    approve = call.name in ALLOWED
    print(f"{call.name}({call.arguments}) of {call.server_label}: {'approved' if approve else 'refused'}")
    headers = {"authorization": "Bearer mcp-key"} if approve else {}
    return run_pb2.ToolApproval(tool_call_id=call.id, approve=approve, headers=headers)


async def converse(runs, assistant_id, question):
    content = message_pb2.MessageContent(text=question)
    message = message_pb2.MessageInput(role=message_pb2.MESSAGE_ROLE_USER, content=content)
    spec = run_pb2.ThreadAndRunSpec(assistant_id=assistant_id, thread=thread_pb2.ThreadSpec(messages=[message]))
    conversation = runs.ConverseRun()
    start = run_service_pb2.ConverseStart(thread_and_run=spec)
    await conversation.write(run_service_pb2.ConverseRunRequest(start=start))
    answer, run = "", None
    async for event in conversation:
        answer += text_of(event)
        if event.WhichOneof("payload") == "run":
            run = event.run
        if event.type == run_event_pb2.RUN_EVENT_TYPE_THREAD_RUN_REQUIRES_ACTION:
            calls = run.required_action.submit_tool_approval.tool_calls
            outputs = run_pb2.ToolOutputs(tool_approvals=[decide(call) for call in calls])
            await conversation.write(run_service_pb2.ConverseRunRequest(tool_outputs=outputs))
    print(f"{run_pb2.RunStatus.Name(run.status)}: {answer}")


async def main():
    address, assistant_id = sys.argv[1:3]
    async with grpc.aio.insecure_channel(address) as channel:
        await converse(run_service_pb2_grpc.RunServiceStub(channel), assistant_id, "What is new?")


if __name__ == "__main__":
    asyncio.run(main())
