// Runs from TypeScript, with @grpc/grpc-js: make all that a run needs and read its answer; stream a
// run, answer its tool calls, wait for one, read errors, page through steps.
//
// The only argument is the gateway's address; without it, the one that `runs-gateway dev` takes by default.

import { credentials, Metadata, type ServiceError, status } from "@grpc/grpc-js";

import { BadRequest, ErrorInfo, RetryInfo } from "./gen/google/rpc/error_details.js";
import { Status } from "./gen/google/rpc/status.js";
import type { Assistant } from "./gen/runsgateway/v1/assistant.js";
import {
  AssistantServiceClient,
  CreateAssistantRequest,
  type DeleteAssistantResponse,
} from "./gen/runsgateway/v1/assistant_service.js";
import { MessageRole, type ThreadMessage } from "./gen/runsgateway/v1/message.js";
import {
  CreateMessageRequest,
  ListMessagesRequest,
  type ListMessagesResponse,
  MessageServiceClient,
} from "./gen/runsgateway/v1/message_service.js";
import { type DeepPartial, type Run, runStatusToJSON, ThreadAndRunSpec, ToolOutputs } from "./gen/runsgateway/v1/run.js";
import { type RunEvent, RunEventType, runEventTypeToJSON } from "./gen/runsgateway/v1/run_event.js";
import {
  ConverseRunRequest,
  CreateRunRequest,
  CreateThreadAndRunRequest,
  RunServiceClient,
  StreamCreateThreadAndRunRequest,
  WaitRunRequest,
} from "./gen/runsgateway/v1/run_service.js";
import { runStepTypeToJSON } from "./gen/runsgateway/v1/run_step.js";
import { ListRunStepsRequest, type ListRunStepsResponse, RunStepServiceClient } from "./gen/runsgateway/v1/run_step_service.js";
import type { ThreadResource } from "./gen/runsgateway/v1/thread.js";
import {
  CreateThreadRequest,
  type DeleteThreadResponse,
  ThreadServiceClient,
} from "./gen/runsgateway/v1/thread_service.js";

const WEATHER = {
  function: {
    name: "get_weather",
    description: "The weather in a city.",
    parametersJson: '{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}',
  },
};

const userMessage = (text: string) => ({ role: MessageRole.MESSAGE_ROLE_USER, content: { text } });

/** A thread with one message, and a run on it. */
function threadAndRun(question: string, run: DeepPartial<ThreadAndRunSpec> = {}): ThreadAndRunSpec {
  const thread = { messages: [userMessage(question)] };
  return ThreadAndRunSpec.fromPartial({ assistantId: "asst_embedded", thread, ...run });
}

/** A unary call as a promise. */
function ask<Answer>(call: (done: (error: ServiceError | null, answer: Answer) => void) => unknown): Promise<Answer> {
  return new Promise((resolve, reject) => call((error, answer) => (error ? reject(error) : resolve(answer))));
}

/** What an event adds to the text of the answer. */
function textOf(event: RunEvent): string {
  return (event.messageDelta?.delta?.content ?? []).map((part) => part.text?.value ?? "").join("");
}

async function fromNothingToAnAnswer(runs: RunServiceClient) {
  console.log("from nothing to an answer");
  const assistants = new AssistantServiceClient(address, credentials.createInsecure());
  const threads = new ThreadServiceClient(address, credentials.createInsecure());
  const messages = new MessageServiceClient(address, credentials.createInsecure());
  const spec = { model: "gpt-4o-mini", instructions: "Be brief." };
  const assistant = await ask<Assistant>((done) =>
    assistants.createAssistant(CreateAssistantRequest.fromPartial({ assistant: spec }), done),
  );
  const thread = await ask<ThreadResource>((done) =>
    threads.createThread(CreateThreadRequest.fromPartial({}), done),
  );
  const [assistantId, threadId] = [assistant.id, thread.id];
  const message = userMessage("What can you do?");
  await ask<ThreadMessage>((done) =>
    messages.createMessage(CreateMessageRequest.fromPartial({ threadId, message }), done),
  );
  const { id: runId } = await ask<Run>((done) =>
    runs.createRun(CreateRunRequest.fromPartial({ threadId, run: { assistantId } }), done),
  );
  const run = await ask<Run>((done) =>
    runs.waitRun(WaitRunRequest.fromPartial({ threadId, runId }), done),
  );
  console.log(`  ${runStatusToJSON(run.status)}`);
  const list = ListMessagesRequest.fromPartial({ threadId, runId });
  const page = await ask<ListMessagesResponse>((done) => messages.listMessages(list, done));
  for (const { content } of page.data) {
    console.log(`  ${content.map((part) => part.text?.value ?? "").join("")}`);
  }
  // A thread's messages go with it.
  const threadGone = await ask<DeleteThreadResponse>((done) =>
    threads.deleteThread({ threadId }, done),
  );
  const assistantGone = await ask<DeleteAssistantResponse>((done) =>
    assistants.deleteAssistant({ assistantId }, done),
  );
  console.log(`  ${threadGone.object}, ${assistantGone.object}`);
  for (const client of [assistants, threads, messages]) client.close();
}

async function streamARun(runs: RunServiceClient) {
  console.log("stream a run");
  const request = StreamCreateThreadAndRunRequest.fromPartial({ threadAndRun: threadAndRun("Hello from afar!") });
  let answer = "";
  for await (const event of runs.streamCreateThreadAndRun(request) as AsyncIterable<RunEvent>) {
    answer += textOf(event);
    if (event.run) console.log(`  ${runEventTypeToJSON(event.type)}`);
  }
  console.log(`  ${answer}`);
}

async function answerToolCalls(runs: RunServiceClient): Promise<Run> {
  console.log("answer tool calls");
  const spec = threadAndRun("What is the weather in Paris?", { tools: [WEATHER], metadata: { "embedded.tool_rounds": "2" } });
  const conversation = runs.converseRun();
  conversation.write(ConverseRunRequest.fromPartial({ start: { threadAndRun: spec } }));
  let answer = "";
  let run: Run | undefined;
  for await (const event of conversation as AsyncIterable<RunEvent>) {
    answer += textOf(event);
    run = event.run ?? run;
    if (event.type === RunEventType.RUN_EVENT_TYPE_THREAD_RUN_REQUIRES_ACTION) {
      const calls = event.run?.requiredAction?.submitToolOutputs?.toolCalls ?? [];
      const toolOutputs = calls.map((call) => {
        console.log(`  ${call.function?.name}(${call.function?.arguments})`);
        const { city } = JSON.parse(call.function?.arguments ?? "{}");
        return { toolCallId: call.id, output: `sunny in ${city}` };
      });
      conversation.write(ConverseRunRequest.fromPartial({ toolOutputs: ToolOutputs.fromPartial({ toolOutputs }) }));
    }
  }
  conversation.end();
  console.log(`  ${answer}`);
  if (!run) throw new Error("the conversation named no run");
  return run;
}

async function waitWithADeadline(runs: RunServiceClient) {
  console.log("wait for a run with a deadline");
  // Left alone, this run says nothing for ten minutes.
  const spec = threadAndRun("Take your time.", { metadata: { "embedded.scenario": "expire" } });
  const { threadId, id: runId } = await ask<Run>((done) =>
    runs.createThreadAndRun(CreateThreadAndRunRequest.fromPartial({ threadAndRun: spec }), done),
  );
  const wait = (milliseconds: number) =>
    ask<Run>((done) =>
      runs.waitRun(WaitRunRequest.fromPartial({ threadId, runId }), new Metadata(), { deadline: Date.now() + milliseconds }, done),
    );
  await wait(300).catch((error: ServiceError) => console.log(`  ${status[error.code]}`));
  await ask<Run>((done) => runs.cancelRun({ threadId, runId }, done));
  const run = await wait(30_000);
  console.log(`  ${runStatusToJSON(run.status)}`);
}

/** An error's code, and what its details say. */
function describe(error: ServiceError): string {
  let info = "";
  let said = "";
  const packed = error.metadata.get("grpc-status-details-bin")[0];
  for (const { typeUrl, value } of packed ? Status.decode(packed as Buffer).details : []) {
    switch (typeUrl) {
      case "type.googleapis.com/google.rpc.ErrorInfo":
        info = ErrorInfo.decode(value).reason;
        break;
      case "type.googleapis.com/google.rpc.BadRequest":
        for (const { field, description } of BadRequest.decode(value).fieldViolations) said += `, ${field} ${description}`;
        break;
      case "type.googleapis.com/google.rpc.RetryInfo": {
        const { seconds = 0, nanos = 0 } = RetryInfo.decode(value).retryDelay ?? {};
        said += `, again in ${seconds * 1000 + nanos / 1e6} ms`;
      }
    }
  }
  return `${status[error.code]}, ${info}${said}`;
}

async function readErrorDetails(runs: RunServiceClient) {
  console.log("read error details");
  const busy = threadAndRun("Are you busy?", { metadata: { "embedded.refuse": "429" } });
  const calls = [
    ask<Run>((done) => runs.getRun({ threadId: "", runId: "run_1" }, done)),
    ask<Run>((done) => runs.getRun({ threadId: "thread_nowhere", runId: "run_1" }, done)),
    ask<Run>((done) => runs.createThreadAndRun(CreateThreadAndRunRequest.fromPartial({ threadAndRun: busy }), done)),
  ];
  for (const outcome of await Promise.allSettled(calls)) {
    if (outcome.status === "rejected") console.log(`  ${describe(outcome.reason)}`);
  }
}

async function pageThroughSteps(steps: RunStepServiceClient, run: Run) {
  console.log("page through steps");
  const request = ListRunStepsRequest.fromPartial({ threadId: run.threadId, runId: run.id, limit: 2 });
  for (;;) {
    const page = await ask<ListRunStepsResponse>((done) => steps.listRunSteps(request, done));
    console.log(`  ${page.data.map((step) => runStepTypeToJSON(step.type)).join(", ")}`);
    if (!page.hasMore) return;
    request.after = page.lastId;
  }
}

const address = process.argv[2] ?? "127.0.0.1:50051";
const runs = new RunServiceClient(address, credentials.createInsecure());
const steps = new RunStepServiceClient(address, credentials.createInsecure());
await fromNothingToAnAnswer(runs);
await streamARun(runs);
const run = await answerToolCalls(runs);
await waitWithADeadline(runs);
await readErrorDetails(runs);
await pageThroughSteps(steps, run);
runs.close();
steps.close();
