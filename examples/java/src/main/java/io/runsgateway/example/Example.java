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
import io.runsgateway.v1.Assistant;
import io.runsgateway.v1.AssistantServiceGrpc;
import io.runsgateway.v1.AssistantServiceGrpc.AssistantServiceBlockingV2Stub;
import io.runsgateway.v1.AssistantSpec;
import io.runsgateway.v1.CancelRunRequest;
import io.runsgateway.v1.ConverseRunRequest;
import io.runsgateway.v1.ConverseStart;
import io.runsgateway.v1.CreateAssistantRequest;
import io.runsgateway.v1.CreateMessageRequest;
import io.runsgateway.v1.CreateRunRequest;
import io.runsgateway.v1.CreateThreadAndRunRequest;
import io.runsgateway.v1.CreateThreadRequest;
import io.runsgateway.v1.DeleteAssistantRequest;
import io.runsgateway.v1.DeleteAssistantResponse;
import io.runsgateway.v1.DeleteThreadRequest;
import io.runsgateway.v1.DeleteThreadResponse;
import io.runsgateway.v1.FunctionDefinition;
import io.runsgateway.v1.GetRunRequest;
import io.runsgateway.v1.ListMessagesRequest;
import io.runsgateway.v1.ListRunStepsRequest;
import io.runsgateway.v1.ListRunStepsResponse;
import io.runsgateway.v1.MessageContent;
import io.runsgateway.v1.MessageInput;
import io.runsgateway.v1.MessageRole;
import io.runsgateway.v1.MessageServiceGrpc;
import io.runsgateway.v1.MessageServiceGrpc.MessageServiceBlockingV2Stub;
import io.runsgateway.v1.RequiredToolCall;
import io.runsgateway.v1.Run;
import io.runsgateway.v1.RunEvent;
import io.runsgateway.v1.RunEventType;
import io.runsgateway.v1.RunServiceGrpc;
import io.runsgateway.v1.RunServiceGrpc.RunServiceBlockingV2Stub;
import io.runsgateway.v1.RunSpec;
import io.runsgateway.v1.RunStepServiceGrpc;
import io.runsgateway.v1.RunStepServiceGrpc.RunStepServiceBlockingV2Stub;
import io.runsgateway.v1.StreamCreateThreadAndRunRequest;
import io.runsgateway.v1.ThreadAndRunSpec;
import io.runsgateway.v1.ThreadMessage;
import io.runsgateway.v1.ThreadResource;
import io.runsgateway.v1.ThreadServiceGrpc;
import io.runsgateway.v1.ThreadServiceGrpc.ThreadServiceBlockingV2Stub;
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
 * Runs from Java, with grpc-java: make all that a run needs and read its answer; stream a run,
 * answer its tool calls, wait for one, read errors, page through steps.
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

  private final AssistantServiceBlockingV2Stub assistants;
  private final ThreadServiceBlockingV2Stub threads;
  private final MessageServiceBlockingV2Stub messages;
  private final RunServiceBlockingV2Stub runs;
  private final RunStepServiceBlockingV2Stub steps;

  private Example(ManagedChannel channel) {
    assistants = AssistantServiceGrpc.newBlockingV2Stub(channel);
    threads = ThreadServiceGrpc.newBlockingV2Stub(channel);
    messages = MessageServiceGrpc.newBlockingV2Stub(channel);
    runs = RunServiceGrpc.newBlockingV2Stub(channel);
    steps = RunStepServiceGrpc.newBlockingV2Stub(channel);
  }

  public static void main(String[] arguments) throws Exception {
    String address = arguments.length > 0 ? arguments[0] : "127.0.0.1:50051";
    ManagedChannel channel = Grpc.newChannelBuilder(address, InsecureChannelCredentials.create()).build();
    try {
      Example example = new Example(channel);
      example.fromNothingToAnAnswer();
      example.streamARun();
      Run run = example.answerToolCalls();
      example.waitWithADeadline();
      example.readErrorDetails();
      example.pageThroughSteps(run);
    } finally {
      channel.shutdown().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  private static MessageInput.Builder userMessage(String text) {
    return MessageInput.newBuilder()
        .setRole(MessageRole.MESSAGE_ROLE_USER)
        .setContent(MessageContent.newBuilder().setText(text));
  }

  /** A thread with one message, and a run on it. */
  private static ThreadAndRunSpec.Builder threadAndRun(String question) {
    return ThreadAndRunSpec.newBuilder()
        .setAssistantId("asst_embedded")
        .setThread(ThreadSpec.newBuilder().addMessages(userMessage(question)));
  }

  /** What an event adds to the text of the answer. */
  private static String textOf(RunEvent event) {
    return event.getMessageDelta().getDelta().getContentList().stream()
        .map(part -> part.getText().getValue())
        .collect(Collectors.joining());
  }

  private void fromNothingToAnAnswer() throws Exception {
    System.out.println("from nothing to an answer");
    AssistantSpec.Builder spec =
        AssistantSpec.newBuilder().setModel("gpt-4o-mini").setInstructions("Be brief.");
    Assistant assistant =
        assistants.createAssistant(CreateAssistantRequest.newBuilder().setAssistant(spec).build());
    ThreadResource thread = threads.createThread(CreateThreadRequest.getDefaultInstance());
    messages.createMessage(
        CreateMessageRequest.newBuilder()
            .setThreadId(thread.getId())
            .setMessage(userMessage("What can you do?"))
            .build());
    Run run =
        runs.createRun(
            CreateRunRequest.newBuilder()
                .setThreadId(thread.getId())
                .setRun(RunSpec.newBuilder().setAssistantId(assistant.getId()))
                .build());
    run =
        runs.waitRun(
            WaitRunRequest.newBuilder().setThreadId(thread.getId()).setRunId(run.getId()).build());
    System.out.println("  " + run.getStatus());
    ListMessagesRequest ofRun =
        ListMessagesRequest.newBuilder().setThreadId(thread.getId()).setRunId(run.getId()).build();
    for (ThreadMessage message : messages.listMessages(ofRun).getDataList()) {
      System.out.println(
          "  "
              + message.getContentList().stream()
                  .map(part -> part.getText().getValue())
                  .collect(Collectors.joining()));
    }
    // A thread's messages go with it.
    DeleteThreadResponse threadGone =
        threads.deleteThread(DeleteThreadRequest.newBuilder().setThreadId(thread.getId()).build());
    DeleteAssistantResponse assistantGone =
        assistants.deleteAssistant(
            DeleteAssistantRequest.newBuilder().setAssistantId(assistant.getId()).build());
    System.out.println("  " + threadGone.getObject() + ", " + assistantGone.getObject());
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
