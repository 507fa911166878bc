// The page: what it does is asked for by the test, through `window.behaviours`. Each function gives back what the test compares.
//
// Connect's client speaks binary gRPC-Web, as its users have it; the text form is that of gRPC's own client for browsers.

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { GrpcWebClientBase, MethodDescriptor, MethodType } from "grpc-web";

import { BadRequestSchema, ErrorInfoSchema, RequestInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { AssistantService } from "./gen/runsgateway/v1/assistant_service_pb.js";
import { MessageRole } from "./gen/runsgateway/v1/message_pb.js";
import { MessageService } from "./gen/runsgateway/v1/message_service_pb.js";
import { RunStatus } from "./gen/runsgateway/v1/run_pb.js";
import { RunEventSchema, RunEventType } from "./gen/runsgateway/v1/run_event_pb.js";
import { RunService, StreamCreateRunRequestSchema } from "./gen/runsgateway/v1/run_service_pb.js";
import { ThreadService } from "./gen/runsgateway/v1/thread_service_pb.js";

const gateway = new URLSearchParams(location.search).get("gateway");
const transport = createGrpcWebTransport({ baseUrl: gateway });
const runs = createClient(RunService, transport);

/** A thread with one message, whose first run is over. */
async function thread() {
  const messages = [{ role: MessageRole.USER, content: { text: "Hello from a page!" } }];
  const { threadId, id } = await runs.createThreadAndRun({ threadAndRun: { assistantId: "asst_embedded", thread: { messages } } });
  await runs.waitRun({ threadId, runId: id });
  return { threadId, id };
}

/** A run that takes its time. */
const slow = (threadId, delay) => ({ threadId, run: { assistantId: "asst_embedded", metadata: { "embedded.delay_ms": `${delay}` } } });

const textOf = (delta) => (delta?.delta?.content ?? []).map((part) => part.text?.value ?? "").join("");

/** What the event carries. */
const carried = (event, kind) => (event.payload?.case === kind ? event.payload.value : undefined);

async function getARun() {
  const { threadId, id } = await thread();
  let requestId;
  const run = await runs.getRun({ threadId, runId: id }, { onHeader: (headers) => (requestId = headers.get("x-request-id")) });
  return { same: run.id === id, status: RunStatus[run.status], requestId: requestId !== null };
}

/** Makes all that a run needs, reads its answer, and deletes what it made. */
async function fromNothingToAnAnswer() {
  const [assistants, threads, messages] = [AssistantService, ThreadService, MessageService].map(
    (service) => createClient(service, transport),
  );
  const assistant = await assistants.createAssistant({ assistant: { model: "gpt-4o-mini" } });
  const { id: threadId } = await threads.createThread({});
  const message = { role: MessageRole.USER, content: { text: "Hello from a page!" } };
  await messages.createMessage({ threadId, message });
  const { id: runId } = await runs.createRun({ threadId, run: { assistantId: assistant.id } });
  await runs.waitRun({ threadId, runId });
  const { data } = await messages.listMessages({ threadId, runId });
  const deleted = [
    await threads.deleteThread({ threadId }),
    await assistants.deleteAssistant({ assistantId: assistant.id }),
  ];
  return {
    answer: data.flatMap(({ content }) => content.map((part) => part.text?.value)),
    deleted: deleted.map(({ object }) => object),
  };
}

/** Every word is a message of its own, and the run still goes on when it comes. */
async function streamARun() {
  const { threadId } = await thread();
  let run;
  let words = 0;
  const statuses = new Set();
  const types = [];
  for await (const event of runs.streamCreateRun(slow(threadId, 100))) {
    run ??= carried(event, "run");
    if (carried(event, "run")) types.push(RunEventType[event.type]);
    if (!textOf(carried(event, "messageDelta"))) continue;
    words += 1;
    if (words <= 3) statuses.add(RunStatus[(await runs.getRun({ threadId, runId: run.id })).status]);
  }
  return { several: words > 3, statuses: [...statuses], types };
}

/** The run would be completed. That it is cancelled is since the page, having read the first event, asks for it. */
async function answerTheFirstEvent() {
  const { threadId } = await thread();
  const types = [];
  for await (const event of runs.streamCreateRun(slow(threadId, 1000))) {
    const run = carried(event, "run");
    if (run) types.push(RunEventType[event.type]);
    if (run && types.length === 1) await runs.cancelRun({ threadId, runId: run.id });
  }
  return { first: types[0], last: types.at(-1) };
}

/** The same by gRPC's own client, as text. */
async function streamAsText() {
  const { threadId } = await thread();
  const method = new MethodDescriptor(
    "/runsgateway.v1.RunService/StreamCreateRun",
    MethodType.SERVER_STREAMING,
    Object,
    Object,
    (request) => toBinary(StreamCreateRunRequestSchema, request),
    (bytes) => fromBinary(RunEventSchema, bytes),
  );
  const request = create(StreamCreateRunRequestSchema, slow(threadId, 1000));
  const stream = new GrpcWebClientBase({ format: "text" }).serverStreaming(gateway + method.getName(), request, {}, method);
  const types = [];
  const ended = new Promise((resolve, reject) => {
    stream.on("error", reject);
    stream.on("status", (status) => resolve(status.code));
  });
  stream.on("data", async (event) => {
    const run = carried(event, "run");
    if (run) types.push(RunEventType[event.type]);
    if (run && types.length === 1) await runs.cancelRun({ threadId, runId: run.id });
  });
  return { code: await ended, first: types[0], last: types.at(-1) };
}

/** What an error says. */
async function failure(call) {
  try {
    await call;
    return "no error";
  } catch (error) {
    const { code, rawMessage } = ConnectError.from(error);
    const [info] = error.findDetails(ErrorInfoSchema);
    const [bad] = error.findDetails(BadRequestSchema);
    const [request] = error.findDetails(RequestInfoSchema);
    return {
      code: Code[code],
      message: rawMessage,
      reason: info?.reason,
      field: bad?.fieldViolations[0]?.field,
      requestId: Boolean(request?.requestId),
    };
  }
}

window.behaviours = {
  fromNothingToAnAnswer,
  getARun,
  streamARun,
  answerTheFirstEvent,
  streamAsText,
  missing: () => failure(runs.getRun({ threadId: "thread_none", runId: "run_none" })),
  mistake: () => failure(runs.getRun({ threadId: "", runId: "run_none" })),
};
