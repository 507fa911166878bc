package io.runsgateway.example;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.protobuf.util.Durations;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.BlockingClientCall;
import io.grpc.stub.MetadataUtils;
import io.runsgateway.v1.ContentPart;
import io.runsgateway.v1.ContentPartDelta;
import io.runsgateway.v1.CreateThreadAndRunRequest;
import io.runsgateway.v1.CreateThreadRequest;
import io.runsgateway.v1.DeleteThreadRequest;
import io.runsgateway.v1.DeleteThreadResponse;
import io.runsgateway.v1.FunctionDefinition;
import io.runsgateway.v1.GetRunRequest;
import io.runsgateway.v1.GetThreadRequest;
import io.runsgateway.v1.ListMessagesRequest;
import io.runsgateway.v1.ListRunsRequest;
import io.runsgateway.v1.MessageContent;
import io.runsgateway.v1.MessageInput;
import io.runsgateway.v1.MessageRole;
import io.runsgateway.v1.MessageServiceGrpc;
import io.runsgateway.v1.MessageServiceGrpc.MessageServiceBlockingV2Stub;
import io.runsgateway.v1.Run;
import io.runsgateway.v1.RunEvent;
import io.runsgateway.v1.RunServiceGrpc;
import io.runsgateway.v1.RunServiceGrpc.RunServiceBlockingV2Stub;
import io.runsgateway.v1.RunSpec;
import io.runsgateway.v1.StreamCreateRunRequest;
import io.runsgateway.v1.StreamCreateThreadAndRunRequest;
import io.runsgateway.v1.StreamOptions;
import io.runsgateway.v1.ThreadAndRunSpec;
import io.runsgateway.v1.ThreadResource;
import io.runsgateway.v1.ThreadServiceGrpc;
import io.runsgateway.v1.ThreadServiceGrpc.ThreadServiceBlockingV2Stub;
import io.runsgateway.v1.ThreadSpec;
import io.runsgateway.v1.Tool;
import io.runsgateway.v1.WaitRunRequest;
import io.runsgateway.v1.WatchRunRequest;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;

/**
 * What tests/polyglot holds a Java client to, one line per behaviour; no example to copy.
 *
 * <p>The arguments are the addresses of four gateways: in front of the embedded API; the same with connections that grow old in a
 * second; in front of the scripted upstream of tests/polyglot; the first one, by connections that are cut.
 */
public final class Behaviours {
  private static final Metadata.Key<String> CLIENT_ID = key("x-client-request-id");
  private static final Metadata.Key<String> REQUEST_ID = key("x-request-id");
  private static final GetRunRequest PAUSED =
      GetRunRequest.newBuilder().setThreadId("thread_1").setRunId("run_paused").build();

  private final RunServiceBlockingV2Stub dev;
  private final RunServiceBlockingV2Stub ageing;
  private final RunServiceBlockingV2Stub scripted;
  private final RunServiceBlockingV2Stub cutting;
  private final ThreadServiceBlockingV2Stub threads;
  private final MessageServiceBlockingV2Stub messages;

  private Behaviours(List<ManagedChannel> channels) {
    dev = RunServiceGrpc.newBlockingV2Stub(channels.get(0));
    ageing = RunServiceGrpc.newBlockingV2Stub(channels.get(1));
    scripted = RunServiceGrpc.newBlockingV2Stub(channels.get(2));
    cutting = RunServiceGrpc.newBlockingV2Stub(channels.get(3));
    threads = ThreadServiceGrpc.newBlockingV2Stub(channels.get(0));
    messages = MessageServiceGrpc.newBlockingV2Stub(channels.get(2));
  }

  public static void main(String[] arguments) throws Exception {
    List<ManagedChannel> channels = new ArrayList<>();
    for (String address : arguments) {
      channels.add(Grpc.newChannelBuilder(address, InsecureChannelCredentials.create()).build());
    }
    Behaviours behaviours = new Behaviours(channels);
    show("metadata", behaviours::metadata);
    show("deadline", behaviours::deadline);
    show("cancellation", behaviours::cancellation);
    show("error details", behaviours::errorDetails);
    show("1 MiB messages", behaviours::largeMessages);
    show("unknown enum values", behaviours::unknownEnumValues);
    show("unknown events", behaviours::unknownEvents);
    show("unknown content", behaviours::unknownContent);
    show("deletion", behaviours::deletion);
    show("resuming", behaviours::resuming);
    show("resumed stream", behaviours::resumedStream);
    for (ManagedChannel channel : channels) {
      channel.shutdown().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  private static void show(String name, Callable<String> behaviour) throws Exception {
    System.out.println(name + ": " + behaviour.call());
  }

  private static Metadata.Key<String> key(String name) {
    return Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
  }

  private static ThreadAndRunSpec.Builder threadAndRun() {
    MessageInput.Builder message =
        MessageInput.newBuilder()
            .setRole(MessageRole.MESSAGE_ROLE_USER)
            .setContent(MessageContent.newBuilder().setText("Tell me a long story."));
    return ThreadAndRunSpec.newBuilder()
        .setAssistantId("asst_embedded")
        .setThread(ThreadSpec.newBuilder().addMessages(message));
  }

  private static StreamCreateThreadAndRunRequest.Builder silent() {
    return StreamCreateThreadAndRunRequest.newBuilder()
        .setThreadAndRun(threadAndRun().putMetadata("embedded.scenario", "expire"));
  }

  /** Reads a stream to its end, and gives its last event. */
  private static RunEvent last(BlockingClientCall<?, RunEvent> events) throws Exception {
    RunEvent last = null;
    for (RunEvent event = events.read(); event != null; event = events.read()) {
      last = event;
    }
    return last;
  }

  /** What a call fails with. */
  private static StatusException failure(Callable<?> call) throws Exception {
    try {
      call.call();
    } catch (StatusException error) {
      return error;
    }
    throw new AssertionError("the call did not fail");
  }

  /** The detail of this type that an error carries. */
  private static <T extends Message> T detail(StatusException error, Class<T> type) throws InvalidProtocolBufferException {
    for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
      if (detail.is(type)) {
        return detail.unpack(type);
      }
    }
    throw new AssertionError("no " + type.getSimpleName());
  }

  private String metadata() throws Exception {
    Metadata sent = new Metadata();
    sent.put(CLIENT_ID, "polyglot");
    AtomicReference<Metadata> headers = new AtomicReference<>();
    scripted
        .withInterceptors(
            MetadataUtils.newAttachHeadersInterceptor(sent),
            MetadataUtils.newCaptureMetadataInterceptor(headers, new AtomicReference<>()))
        .getRun(PAUSED);
    return "x-request-id " + headers.get().get(REQUEST_ID);
  }

  private String deadline() throws Exception {
    BlockingClientCall<?, RunEvent> events =
        dev.withDeadlineAfter(500, TimeUnit.MILLISECONDS).streamCreateThreadAndRun(silent().build());
    return failure(() -> last(events)).getStatus().getCode().toString();
  }

  private String cancellation() throws Exception {
    StreamOptions options = StreamOptions.newBuilder().setCancelOnDisconnect(true).build();
    BlockingClientCall<?, RunEvent> events = dev.streamCreateThreadAndRun(silent().setOptions(options).build());
    RunEvent event = events.read();
    while (!event.hasRun()) {
      event = events.read();
    }
    events.cancel("seen enough", null);
    Run run = event.getRun();
    WaitRunRequest wait = WaitRunRequest.newBuilder().setThreadId(run.getThreadId()).setRunId(run.getId()).build();
    return dev.withDeadlineAfter(30, TimeUnit.SECONDS).waitRun(wait).getStatus().toString();
  }

  private String errorDetails() throws Exception {
    GetRunRequest limited = GetRunRequest.newBuilder().setThreadId("thread_1").setRunId("run_limited").build();
    StatusException error = failure(() -> scripted.getRun(limited));
    ErrorInfo info = detail(error, ErrorInfo.class);
    return String.format(
        "%s %s %s %s, again in %d ms",
        error.getStatus().getCode(),
        info.getDomain(),
        info.getReason(),
        info.getMetadataOrThrow("http_status"),
        Durations.toMillis(detail(error, RetryInfo.class).getRetryDelay()));
  }

  private String largeMessages() throws Exception {
    FunctionDefinition.Builder function =
        FunctionDefinition.newBuilder().setName("f").setDescription("x".repeat(1 << 20));
    ThreadAndRunSpec.Builder spec = threadAndRun().addTools(Tool.newBuilder().setFunction(function));
    Run run = dev.createThreadAndRun(CreateThreadAndRunRequest.newBuilder().setThreadAndRun(spec).build());
    return run.getTools(0).getFunction().getDescription().length() + " bytes came back";
  }

  private String unknownEnumValues() throws Exception {
    Run run = scripted.getRun(PAUSED);
    ListRunsRequest list = ListRunsRequest.newBuilder().setThreadId("thread_1").setOrderValue(99).build();
    StatusException error = failure(() -> scripted.listRuns(list));
    String field = detail(error, BadRequest.class).getFieldViolations(0).getField();
    return String.format("%s %s, sent: %s %s", run.getStatus(), run.getExtraJson(), error.getStatus().getCode(), field);
  }

  private String unknownEvents() throws Exception {
    RunSpec run = RunSpec.newBuilder().setAssistantId("asst_1").build();
    BlockingClientCall<?, RunEvent> events =
        scripted.streamCreateRun(StreamCreateRunRequest.newBuilder().setThreadId("thread_1").setRun(run).build());
    RunEvent event = events.read();
    while (!event.hasUnknown()) {
      event = events.read();
    }
    return String.format("%s %s %s", event.getType(), event.getUnknown().getName(), event.getUnknown().getData());
  }

  private String unknownContent() throws Exception {
    ListMessagesRequest request =
        ListMessagesRequest.newBuilder().setThreadId("thread_1").setRunId("run_1").build();
    List<ContentPart> content = messages.listMessages(request).getData(0).getContentList();
    String text = content.get(0).getText().getValue();
    ContentPart unknown = content.get(1);
    return String.format("%s %s %s", text, unknown.getType(), unknown.getExtraJson());
  }

  private String deletion() throws Exception {
    ThreadResource thread = threads.createThread(CreateThreadRequest.getDefaultInstance());
    DeleteThreadResponse deleted =
        threads.deleteThread(DeleteThreadRequest.newBuilder().setThreadId(thread.getId()).build());
    GetThreadRequest get = GetThreadRequest.newBuilder().setThreadId(thread.getId()).build();
    StatusException error = failure(() -> threads.getThread(get));
    return deleted.getObject() + ", then " + error.getStatus().getCode();
  }

  private String resumedStream() throws Exception {
    ThreadAndRunSpec.Builder spec = threadAndRun().putMetadata("embedded.delay_ms", "50");
    StreamCreateThreadAndRunRequest request =
        StreamCreateThreadAndRunRequest.newBuilder()
            .setThreadAndRun(spec)
            .setOptions(StreamOptions.newBuilder().setResumable(true))
            .build();
    Resuming events = new Resuming(cutting, cutting.streamCreateThreadAndRun(request));
    StringBuilder text = new StringBuilder();
    RunEvent last = null;
    int count = 0;
    for (RunEvent event = events.read(); event != null; event = events.read()) {
      for (ContentPartDelta part : event.getMessageDelta().getDelta().getContentList()) {
        text.append(part.getText().getValue());
      }
      last = event;
      count++;
    }
    return String.format("%s %d events, %s", text, count, last.getType());
  }

  private String resuming() throws Exception {
    ThreadAndRunSpec.Builder spec = threadAndRun().putMetadata("embedded.delay_ms", "150");
    StatusException error =
        failure(
            () ->
                last(
                    ageing.streamCreateThreadAndRun(
                        StreamCreateThreadAndRunRequest.newBuilder().setThreadAndRun(spec).build())));
    ErrorInfo info = detail(error, ErrorInfo.class);
    WatchRunRequest watch =
        WatchRunRequest.newBuilder()
            .setThreadId(info.getMetadataOrThrow("thread_id"))
            .setRunId(info.getMetadataOrThrow("run_id"))
            .build();
    while (true) {
      try {
        RunEvent last = last(ageing.watchRun(watch));
        return error.getStatus().getCode() + " " + info.getReason() + ", then " + last.getType();
      } catch (StatusException again) {
        if (again.getStatus().getCode() != Status.Code.UNAVAILABLE) {
          throw again;
        }
      }
    }
  }
}
