package io.runsgateway.example;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Struct;
import com.google.protobuf.util.Durations;
import com.google.protobuf.util.JsonFormat;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.StatusException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.BlockingClientCall;
import io.runsgateway.v1.CancelRunRequest;
import io.runsgateway.v1.ConverseRunRequest;
import io.runsgateway.v1.ConverseStart;
import io.runsgateway.v1.CreateThreadAndRunRequest;
import io.runsgateway.v1.FunctionDefinition;
import io.runsgateway.v1.GetRunRequest;
import io.runsgateway.v1.ListRunStepsRequest;
import io.runsgateway.v1.ListRunStepsResponse;
import io.runsgateway.v1.MessageContent;
import io.runsgateway.v1.MessageInput;
import io.runsgateway.v1.MessageRole;
import io.runsgateway.v1.RequiredToolCall;
import io.runsgateway.v1.Run;
import io.runsgateway.v1.RunEvent;
import io.runsgateway.v1.RunEventType;
import io.runsgateway.v1.RunServiceGrpc;
import io.runsgateway.v1.RunServiceGrpc.RunServiceBlockingV2Stub;
import io.runsgateway.v1.RunStepServiceGrpc;
import io.runsgateway.v1.RunStepServiceGrpc.RunStepServiceBlockingV2Stub;
import io.runsgateway.v1.StreamCreateThreadAndRunRequest;
import io.runsgateway.v1.ThreadAndRunSpec;
import io.runsgateway.v1.ThreadSpec;
import io.runsgateway.v1.Tool;
import io.runsgateway.v1.ToolOutput;
import io.runsgateway.v1.ToolOutputs;
import io.runsgateway.v1.WaitRunRequest;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;

/**
 * Runs from Java, with grpc-java: stream one, answer its tool calls, wait for one, read errors, page through steps.
 *
 * <p>The only argument is the gateway's address; without it, the one that {@code runs-gateway dev} takes by default.
 */
public final class Example {
  private static final Tool WEATHER =
      Tool.newBuilder()
          .setFunction(
              FunctionDefinition.newBuilder()
                  .setName("get_weather")
                  .setDescription("The weather in a city.")
                  .setParametersJson(
                      "{\"type\":\"object\",\"properties\":{\"city\":{\"type\":\"string\"}},\"required\":[\"city\"]}"))
          .build();

  private final RunServiceBlockingV2Stub runs;
  private final RunStepServiceBlockingV2Stub steps;

  private Example(ManagedChannel channel) {
    runs = RunServiceGrpc.newBlockingV2Stub(channel);
    steps = RunStepServiceGrpc.newBlockingV2Stub(channel);
  }

  public static void main(String[] arguments) throws Exception {
    String address = arguments.length > 0 ? arguments[0] : "127.0.0.1:50051";
    ManagedChannel channel = Grpc.newChannelBuilder(address, InsecureChannelCredentials.create()).build();
    try {
      Example example = new Example(channel);
      example.streamARun();
      Run run = example.answerToolCalls();
      example.waitWithADeadline();
      example.readErrorDetails();
      example.pageThroughSteps(run);
    } finally {
      channel.shutdown().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  /** A thread with one message, and a run on it. */
  private static ThreadAndRunSpec.Builder threadAndRun(String question) {
    MessageInput.Builder message =
        MessageInput.newBuilder()
            .setRole(MessageRole.MESSAGE_ROLE_USER)
            .setContent(MessageContent.newBuilder().setText(question));
    return ThreadAndRunSpec.newBuilder()
        .setAssistantId("asst_embedded")
        .setThread(ThreadSpec.newBuilder().addMessages(message));
  }

  /** What an event adds to the text of the answer. */
  private static String textOf(RunEvent event) {
    return event.getMessageDelta().getDelta().getContentList().stream()
        .map(part -> part.getText().getValue())
        .collect(Collectors.joining());
  }

  private void streamARun() throws Exception {
    System.out.println("stream a run");
    BlockingClientCall<?, RunEvent> events =
        runs.streamCreateThreadAndRun(
            StreamCreateThreadAndRunRequest.newBuilder().setThreadAndRun(threadAndRun("Hello from afar!")).build());
    StringBuilder answer = new StringBuilder();
    for (RunEvent event = events.read(); event != null; event = events.read()) {
      answer.append(textOf(event));
      if (event.hasRun()) {
        System.out.println("  " + event.getType());
      }
    }
    System.out.println("  " + answer);
  }

  private Run answerToolCalls() throws Exception {
    System.out.println("answer tool calls");
    BlockingClientCall<ConverseRunRequest, RunEvent> conversation = runs.converseRun();
    ThreadAndRunSpec.Builder spec =
        threadAndRun("What is the weather in Paris?").addTools(WEATHER).putMetadata("embedded.tool_rounds", "2");
    conversation.write(
        ConverseRunRequest.newBuilder().setStart(ConverseStart.newBuilder().setThreadAndRun(spec)).build());
    StringBuilder answer = new StringBuilder();
    Run run = null;
    for (RunEvent event = conversation.read(); event != null; event = conversation.read()) {
      answer.append(textOf(event));
      run = event.hasRun() ? event.getRun() : run;
      if (event.getType() == RunEventType.RUN_EVENT_TYPE_THREAD_RUN_REQUIRES_ACTION) {
        ToolOutputs outputs = callTools(run.getRequiredAction().getSubmitToolOutputs().getToolCallsList());
        conversation.write(ConverseRunRequest.newBuilder().setToolOutputs(outputs).build());
      }
    }
    System.out.println("  " + answer);
    return run;
  }

  private static ToolOutputs callTools(List<RequiredToolCall> calls) throws InvalidProtocolBufferException {
    ToolOutputs.Builder outputs = ToolOutputs.newBuilder();
    for (RequiredToolCall call : calls) {
      System.out.printf("  %s(%s)%n", call.getFunction().getName(), call.getFunction().getArguments());
      Struct.Builder arguments = Struct.newBuilder();
      JsonFormat.parser().merge(call.getFunction().getArguments(), arguments);
      String city = arguments.getFieldsOrThrow("city").getStringValue();
      outputs.addToolOutputs(ToolOutput.newBuilder().setToolCallId(call.getId()).setOutput("sunny in " + city));
    }
    return outputs.build();
  }

  private void waitWithADeadline() throws Exception {
    System.out.println("wait for a run with a deadline");
    // Left alone, this run says nothing for ten minutes.
    ThreadAndRunSpec.Builder spec = threadAndRun("Take your time.").putMetadata("embedded.scenario", "expire");
    Run run = runs.createThreadAndRun(CreateThreadAndRunRequest.newBuilder().setThreadAndRun(spec).build());
    WaitRunRequest wait = WaitRunRequest.newBuilder().setThreadId(run.getThreadId()).setRunId(run.getId()).build();
    try {
      runs.withDeadlineAfter(300, TimeUnit.MILLISECONDS).waitRun(wait);
    } catch (StatusException error) {
      System.out.println("  " + error.getStatus().getCode());
    }
    runs.cancelRun(CancelRunRequest.newBuilder().setThreadId(run.getThreadId()).setRunId(run.getId()).build());
    System.out.println("  " + runs.withDeadlineAfter(30, TimeUnit.SECONDS).waitRun(wait).getStatus());
  }

  /** An error's code, and what its details say. */
  private static String describe(StatusException error) throws InvalidProtocolBufferException {
    String info = "";
    StringBuilder said = new StringBuilder();
    com.google.rpc.Status status = StatusProto.fromThrowable(error);
    for (Any detail : status == null ? List.<Any>of() : status.getDetailsList()) {
      if (detail.is(ErrorInfo.class)) {
        info = detail.unpack(ErrorInfo.class).getReason();
      } else if (detail.is(BadRequest.class)) {
        for (BadRequest.FieldViolation violation : detail.unpack(BadRequest.class).getFieldViolationsList()) {
          said.append(", ").append(violation.getField()).append(" ").append(violation.getDescription());
        }
      } else if (detail.is(RetryInfo.class)) {
        long delay = Durations.toMillis(detail.unpack(RetryInfo.class).getRetryDelay());
        said.append(", again in ").append(delay).append(" ms");
      }
    }
    return error.getStatus().getCode() + ", " + info + said;
  }

  private void readErrorDetails() throws Exception {
    System.out.println("read error details");
    CreateThreadAndRunRequest busy =
        CreateThreadAndRunRequest.newBuilder()
            .setThreadAndRun(threadAndRun("Are you busy?").putMetadata("embedded.refuse", "429"))
            .build();
    List<Callable<Run>> calls =
        List.of(
            () -> runs.getRun(GetRunRequest.newBuilder().setRunId("run_1").build()),
            () -> runs.getRun(GetRunRequest.newBuilder().setThreadId("thread_nowhere").setRunId("run_1").build()),
            () -> runs.createThreadAndRun(busy));
    for (Callable<Run> call : calls) {
      try {
        call.call();
      } catch (StatusException error) {
        System.out.println("  " + describe(error));
      }
    }
  }

  private void pageThroughSteps(Run run) throws Exception {
    System.out.println("page through steps");
    ListRunStepsRequest.Builder request =
        ListRunStepsRequest.newBuilder().setThreadId(run.getThreadId()).setRunId(run.getId()).setLimit(2);
    ListRunStepsResponse page;
    do {
      page = steps.listRunSteps(request.build());
      System.out.println(
          "  " + page.getDataList().stream().map(step -> step.getType().name()).collect(Collectors.joining(", ")));
      request.setAfter(page.getLastId());
    } while (page.getHasMore());
  }
}
