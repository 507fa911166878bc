package io.runsgateway.example;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.ErrorInfo;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.BlockingClientCall;
import io.runsgateway.v1.ResumeRunRequest;
import io.runsgateway.v1.RunEvent;
import io.runsgateway.v1.RunServiceGrpc.RunServiceBlockingV2Stub;
import java.time.Duration;
import java.time.Instant;
import java.util.EnumSet;
import java.util.Set;

/** A stream of a run that goes on where it broke, on whichever replica answers; to copy from. */
final class Resuming {
  private static final Set<Status.Code> BROKEN =
      EnumSet.of(Status.Code.UNAVAILABLE, Status.Code.UNKNOWN, Status.Code.INTERNAL, Status.Code.ABORTED);
  private static final int MAX_RESUMES = 8;
  private static final Duration MAX_OUTAGE = Duration.ofMinutes(1);

  private final RunServiceBlockingV2Stub runs;
  private final ResumeRunRequest.Builder place = ResumeRunRequest.newBuilder();
  private BlockingClientCall<?, RunEvent> events;
  private int resumes;
  private Instant until;

  /** Goes on with events that were asked for with {@code resumable}; each resume is a call of {@code runs}. */
  Resuming(RunServiceBlockingV2Stub runs, BlockingClientCall<?, RunEvent> events) {
    this.runs = runs;
    this.events = events;
  }

  /**
   * The next event, each once; null at the end. Where the stream breaks it is resumed, so often in a row and for so long at most; an event
   * that has a position begins a new row.
   */
  RunEvent read() throws StatusException, InterruptedException, InvalidProtocolBufferException {
    while (true) {
      try {
        RunEvent event = events.read();
        if (event != null && event.hasRun()) {
          place.setThreadId(event.getRun().getThreadId()).setRunId(event.getRun().getId());
        }
        if (event != null && !event.getPosition().isEmpty()) {
          place.setAfterPosition(event.getPosition());
          resumes = 0;
        }
        return event;
      } catch (StatusException error) {
        learn(error);
        until = resumes == 0 ? Instant.now().plus(MAX_OUTAGE) : until;
        boolean isBroken = BROKEN.contains(error.getStatus().getCode()) && !place.getRunId().isEmpty();
        if (!isBroken || resumes == MAX_RESUMES || Instant.now().isAfter(until)) {
          throw error;
        }
        Thread.sleep(Math.min(100L << resumes, 5_000));
        resumes++;
        events = runs.resumeRun(place.build());
      }
    }
  }

  /** An error may name the run before any event has. What nobody names cannot be resumed. */
  private void learn(StatusException error) throws InvalidProtocolBufferException {
    for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
      if (detail.is(ErrorInfo.class) && place.getRunId().isEmpty()) {
        ErrorInfo info = detail.unpack(ErrorInfo.class);
        place.setThreadId(info.getMetadataOrDefault("thread_id", "")).setRunId(info.getMetadataOrDefault("run_id", ""));
      }
    }
  }
}
