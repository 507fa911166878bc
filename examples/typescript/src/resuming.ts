// A stream of a run that goes on where it broke, on whichever replica answers; to copy from.

import { setTimeout as sleep } from "node:timers/promises";

import { type ClientReadableStream, Metadata, type ServiceError, status } from "@grpc/grpc-js";

import { ErrorInfo } from "./gen/google/rpc/error_details.js";
import { Status } from "./gen/google/rpc/status.js";
import type { RunEvent } from "./gen/runsgateway/v1/run_event.js";
import { ResumeRunRequest, type RunServiceClient } from "./gen/runsgateway/v1/run_service.js";

const BROKEN = [status.UNAVAILABLE, status.UNKNOWN, status.INTERNAL, status.ABORTED];

/**
 * Each event of `events` once: a stream that was asked for with `options.resumable`. Where it breaks it is resumed, `maxResumes` times in a
 * row and for `maxOutage` milliseconds at most; an event that has a position begins a new row. `metadata` goes along with each resume.
 */
export async function* resuming(
  runs: RunServiceClient,
  events: ClientReadableStream<RunEvent>,
  { metadata = new Metadata(), maxResumes = 8, maxOutage = 60_000 } = {},
): AsyncGenerator<RunEvent> {
  const place = ResumeRunRequest.fromPartial({});
  for (let resumes = 0, until = 0; ; resumes++) {
    try {
      for await (const event of events as AsyncIterable<RunEvent>) {
        if (event.run) [place.threadId, place.runId] = [event.run.threadId, event.run.id];
        if (event.position) [place.afterPosition, resumes] = [event.position, 0];
        yield event;
      }
      return;
    } catch (thrown) {
      const error = thrown as ServiceError;
      // An error may name the run before any event has. What nobody names cannot be resumed.
      const { thread_id = "", run_id = "" } = namesOf(error);
      if (!place.runId) [place.threadId, place.runId] = [thread_id, run_id];
      if (resumes === 0) until = Date.now() + maxOutage;
      if (!BROKEN.includes(error.code) || !place.runId || resumes === maxResumes || Date.now() > until) throw error;
    }
    await sleep(Math.min(100 * 2 ** resumes, 5_000));
    events = runs.resumeRun(place, metadata);
  }
}

/** What the `ErrorInfo` of an error names. */
function namesOf(error: ServiceError): Record<string, string> {
  const [packed] = error.metadata?.get("grpc-status-details-bin") ?? [];
  const details = packed ? Status.decode(packed as Buffer).details : [];
  const info = details.find(({ typeUrl }) => typeUrl.endsWith("/google.rpc.ErrorInfo"));
  return info ? ErrorInfo.decode(info.value).metadata : {};
}
