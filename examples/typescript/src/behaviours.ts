// What tests/polyglot holds a TypeScript client to, one line per behaviour; no example to copy.
//
// The arguments are the addresses of four gateways: in front of the embedded API; the same with connections that grow old in a second; in
// front of the scripted upstream of tests/polyglot; the first one, by connections that are cut.

import { type ClientReadableStream, credentials, Metadata, type ServiceError, status } from "@grpc/grpc-js";

import { BadRequest, ErrorInfo, RetryInfo } from "./gen/google/rpc/error_details.js";
import { Status } from "./gen/google/rpc/status.js";
import { contentPartTypeToJSON, MessageRole } from "./gen/runsgateway/v1/message.js";
import {
  ListMessagesRequest,
  type ListMessagesResponse,
  MessageServiceClient,
} from "./gen/runsgateway/v1/message_service.js";
import { type Run, runStatusToJSON, type ThreadAndRunSpec } from "./gen/runsgateway/v1/run.js";
import { type RunEvent, runEventTypeToJSON } from "./gen/runsgateway/v1/run_event.js";
import {
  CreateThreadAndRunRequest,
  type DeepPartial,
  ListRunsRequest,
  type ListRunsResponse,
  RunServiceClient,
  type SortOrder,
  StreamCreateRunRequest,
  StreamCreateThreadAndRunRequest,
  WaitRunRequest,
  WatchRunRequest,
} from "./gen/runsgateway/v1/run_service.js";
import type { ThreadResource } from "./gen/runsgateway/v1/thread.js";
import {
  CreateThreadRequest,
  type DeleteThreadResponse,
  ThreadServiceClient,
} from "./gen/runsgateway/v1/thread_service.js";
import { resuming } from "./resuming.js";

const [dev, ageing, scripted, cutting] = process.argv.slice(2).map((address) => new RunServiceClient(address, credentials.createInsecure()));
const threads = new ThreadServiceClient(process.argv[2], credentials.createInsecure());
const messages = new MessageServiceClient(process.argv[4], credentials.createInsecure());
const PAUSED = { threadId: "thread_1", runId: "run_paused" };
const SILENT = { metadata: { "embedded.scenario": "expire" } };

function threadAndRun(run: DeepPartial<ThreadAndRunSpec>): DeepPartial<ThreadAndRunSpec> {
  const message = { role: MessageRole.MESSAGE_ROLE_USER, content: { text: "Tell me a long story." } };
  return { assistantId: "asst_embedded", thread: { messages: [message] }, ...run };
}

function ask<Answer>(call: (done: (error: ServiceError | null, answer: Answer) => void) => unknown): Promise<Answer> {
  return new Promise((resolve, reject) => call((error, answer) => (error ? reject(error) : resolve(answer))));
}

/** Reads a stream until its end, or until an event is what is looked for. */
async function read(events: ClientReadableStream<RunEvent>, wanted: (event: RunEvent) => boolean = () => false) {
  let last: RunEvent | undefined;
  for await (const event of events as AsyncIterable<RunEvent>) {
    last = event;
    if (wanted(event)) break;
  }
  return last;
}

/** What a call fails with. */
async function failure(call: Promise<unknown>): Promise<ServiceError> {
  return call.then(
    () => Promise.reject(new Error("the call did not fail")),
    (error: ServiceError) => error,
  );
}

/** The detail of this name that an error carries, or an empty one. */
function detail<Detail>(error: ServiceError, name: string, kind: { decode(bytes: Uint8Array): Detail }): Detail {
  const packed = error.metadata.get("grpc-status-details-bin")[0] as Buffer | undefined;
  const found = packed && Status.decode(packed).details.find(({ typeUrl }) => typeUrl.endsWith(`/google.rpc.${name}`));
  return kind.decode(found ? found.value : new Uint8Array());
}

const BEHAVIOURS: Record<string, () => Promise<string>> = {
  async metadata() {
    const metadata = new Metadata();
    metadata.set("x-client-request-id", "polyglot");
    let answered: Metadata | undefined;
    await ask<Run>((done) => scripted.getRun(PAUSED, metadata, done).on("metadata", (headers) => (answered = headers)));
    return `x-request-id ${answered?.get("x-request-id")}`;
  },
  async deadline() {
    const request = StreamCreateThreadAndRunRequest.fromPartial({ threadAndRun: threadAndRun(SILENT) });
    const events = dev.streamCreateThreadAndRun(request, new Metadata(), { deadline: Date.now() + 500 });
    return status[(await failure(read(events))).code];
  },
  async cancellation() {
    const spec = { threadAndRun: threadAndRun(SILENT), options: { cancelOnDisconnect: true } };
    const events = dev.streamCreateThreadAndRun(StreamCreateThreadAndRunRequest.fromPartial(spec));
    const run = (await read(events, (event) => event.run !== undefined))?.run;
    events.cancel();
    const request = WaitRunRequest.fromPartial({ threadId: run?.threadId, runId: run?.id });
    const ended = await ask<Run>((done) => dev.waitRun(request, new Metadata(), { deadline: Date.now() + 30_000 }, done));
    return runStatusToJSON(ended.status);
  },
  async "error details"() {
    const error = await failure(ask<Run>((done) => scripted.getRun({ threadId: "thread_1", runId: "run_limited" }, done)));
    const { domain, reason, metadata } = detail(error, "ErrorInfo", ErrorInfo);
    const { seconds = 0, nanos = 0 } = detail(error, "RetryInfo", RetryInfo).retryDelay ?? {};
    return `${status[error.code]} ${domain} ${reason} ${metadata.http_status}, again in ${seconds * 1000 + nanos / 1e6} ms`;
  },
  async "1 MiB messages"() {
    const tools = [{ function: { name: "f", description: "x".repeat(1 << 20) } }];
    const request = CreateThreadAndRunRequest.fromPartial({ threadAndRun: threadAndRun({ tools }) });
    const run = await ask<Run>((done) => dev.createThreadAndRun(request, done));
    return `${run.tools[0].function?.description?.length} bytes came back`;
  },
  async "unknown enum values"() {
    const run = await ask<Run>((done) => scripted.getRun(PAUSED, done));
    const request = ListRunsRequest.fromPartial({ threadId: "thread_1", order: 99 as SortOrder });
    const error = await failure(ask<ListRunsResponse>((done) => scripted.listRuns(request, done)));
    const fields = detail(error, "BadRequest", BadRequest).fieldViolations.map(({ field }) => field);
    return `${runStatusToJSON(run.status)} ${run.extraJson}, sent: ${status[error.code]} ${fields}`;
  },
  async "unknown events"() {
    const request = StreamCreateRunRequest.fromPartial({ threadId: "thread_1", run: { assistantId: "asst_1" } });
    const event = await read(scripted.streamCreateRun(request), (event) => event.unknown !== undefined);
    return `${event && runEventTypeToJSON(event.type)} ${event?.unknown?.name} ${event?.unknown?.data}`;
  },
  async "unknown content"() {
    const request = ListMessagesRequest.fromPartial({ threadId: "thread_1", runId: "run_1" });
    const page = await ask<ListMessagesResponse>((done) => messages.listMessages(request, done));
    const [text, unknown] = page.data[0].content;
    return `${text.text?.value} ${contentPartTypeToJSON(unknown.type)} ${unknown.extraJson}`;
  },
  async deletion() {
    const { id: threadId } = await ask<ThreadResource>((done) =>
      threads.createThread(CreateThreadRequest.fromPartial({}), done),
    );
    const deleted = await ask<DeleteThreadResponse>((done) =>
      threads.deleteThread({ threadId }, done),
    );
    const error = await failure(
      ask<ThreadResource>((done) => threads.getThread({ threadId }, done)),
    );
    return `${deleted.object}, then ${status[error.code]}`;
  },
  async resuming() {
    const spec = threadAndRun({ metadata: { "embedded.delay_ms": "150" } });
    const request = StreamCreateThreadAndRunRequest.fromPartial({ threadAndRun: spec });
    const error = await failure(read(ageing.streamCreateThreadAndRun(request)));
    const { reason, metadata } = detail(error, "ErrorInfo", ErrorInfo);
    const watch = WatchRunRequest.fromPartial({ threadId: metadata.thread_id, runId: metadata.run_id });
    for (;;) {
      try {
        const last = await read(ageing.watchRun(watch));
        return `${status[error.code]} ${reason}, then ${last && runEventTypeToJSON(last.type)}`;
      } catch (again) {
        if ((again as ServiceError).code !== status.UNAVAILABLE) throw again;
      }
    }
  },
  async "resumed stream"() {
    const spec = { threadAndRun: threadAndRun({ metadata: { "embedded.delay_ms": "50" } }), options: { resumable: true } };
    const events: RunEvent[] = [];
    const call = cutting.streamCreateThreadAndRun(StreamCreateThreadAndRunRequest.fromPartial(spec));
    for await (const event of resuming(cutting, call)) events.push(event);
    const parts = events.flatMap((event) => event.messageDelta?.delta?.content ?? []);
    const text = parts.map((part) => part.text?.value).join("");
    return `${text} ${events.length} events, ${runEventTypeToJSON(events[events.length - 1].type)}`;
  },
};

for (const [name, behaviour] of Object.entries(BEHAVIOURS)) console.log(`${name}: ${await behaviour()}`);
for (const client of [dev, ageing, scripted, cutting, threads, messages]) client.close();
