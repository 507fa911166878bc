// Runs from Go, with grpc-go: make all that a run needs and read its answer; stream a run, answer
// its tool calls, wait for one, read errors, page through steps.
//
// The only argument is the gateway's address; without it, the one that `runs-gateway dev` takes by default.
package main

//go:generate go run github.com/bufbuild/buf/cmd/buf@v1.75.0 generate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/runs-gateway/runs-gateway/examples/go/gen/runsgateway/v1"
)

var weather = &pb.Tool{Function: &pb.FunctionDefinition{
	Name:           "get_weather",
	Description:    proto.String("The weather in a city."),
	ParametersJson: `{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}`,
}}

func userMessage(text string) *pb.MessageInput {
	return &pb.MessageInput{
		Role:    pb.MessageRole_MESSAGE_ROLE_USER,
		Content: &pb.MessageContent{Text: proto.String(text)},
	}
}

// threadAndRun is a thread with one message, and a run on it.
func threadAndRun(question string, metadata map[string]string, tools ...*pb.Tool) *pb.ThreadAndRunSpec {
	return &pb.ThreadAndRunSpec{
		AssistantId: "asst_embedded",
		Thread:      &pb.ThreadSpec{Messages: []*pb.MessageInput{userMessage(question)}},
		Metadata:    metadata,
		Tools:       tools,
	}
}

// textOf is what an event adds to the text of the answer.
func textOf(event *pb.RunEvent) (text string) {
	for _, part := range event.GetMessageDelta().GetDelta().GetContent() {
		text += part.GetText().GetValue()
	}
	return text
}

func fromNothingToAnAnswer(ctx context.Context, connection *grpc.ClientConn) error {
	fmt.Println("from nothing to an answer")
	assistants := pb.NewAssistantServiceClient(connection)
	threads := pb.NewThreadServiceClient(connection)
	messages := pb.NewMessageServiceClient(connection)
	runs := pb.NewRunServiceClient(connection)

	spec := &pb.AssistantSpec{Model: "gpt-4o-mini", Instructions: proto.String("Be brief.")}
	assistant, err := assistants.CreateAssistant(ctx, &pb.CreateAssistantRequest{Assistant: spec})
	if err != nil {
		return err
	}
	thread, err := threads.CreateThread(ctx, &pb.CreateThreadRequest{})
	if err != nil {
		return err
	}
	threadID, message := thread.GetId(), userMessage("What can you do?")
	request := &pb.CreateMessageRequest{ThreadId: threadID, Message: message}
	if _, err := messages.CreateMessage(ctx, request); err != nil {
		return err
	}
	runSpec := &pb.RunSpec{AssistantId: assistant.GetId()}
	run, err := runs.CreateRun(ctx, &pb.CreateRunRequest{ThreadId: threadID, Run: runSpec})
	if err != nil {
		return err
	}
	run, err = runs.WaitRun(ctx, &pb.WaitRunRequest{ThreadId: threadID, RunId: run.GetId()})
	if err != nil {
		return err
	}
	fmt.Printf("  %s\n", run.GetStatus())
	ofRun := &pb.ListMessagesRequest{ThreadId: threadID, RunId: run.GetId()}
	page, err := messages.ListMessages(ctx, ofRun)
	if err != nil {
		return err
	}
	for _, message := range page.GetData() {
		var text string
		for _, part := range message.GetContent() {
			text += part.GetText().GetValue()
		}
		fmt.Printf("  %s\n", text)
	}
	// A thread's messages go with it.
	threadGone, err := threads.DeleteThread(ctx, &pb.DeleteThreadRequest{ThreadId: threadID})
	if err != nil {
		return err
	}
	deletion := &pb.DeleteAssistantRequest{AssistantId: assistant.GetId()}
	assistantGone, err := assistants.DeleteAssistant(ctx, deletion)
	if err != nil {
		return err
	}
	fmt.Printf("  %s, %s\n", threadGone.GetObject(), assistantGone.GetObject())
	return nil
}

func streamARun(ctx context.Context, runs pb.RunServiceClient) error {
	fmt.Println("stream a run")
	request := &pb.StreamCreateThreadAndRunRequest{ThreadAndRun: threadAndRun("Hello from afar!", nil)}
	events, err := runs.StreamCreateThreadAndRun(ctx, request)
	if err != nil {
		return err
	}
	var answer string
	for {
		event, err := events.Recv()
		if errors.Is(err, io.EOF) {
			fmt.Printf("  %s\n", answer)
			return nil
		}
		if err != nil {
			return err
		}
		answer += textOf(event)
		if event.GetRun() != nil {
			fmt.Printf("  %s\n", event.GetType())
		}
	}
}

func answerToolCalls(ctx context.Context, runs pb.RunServiceClient) (*pb.Run, error) {
	fmt.Println("answer tool calls")
	conversation, err := runs.ConverseRun(ctx)
	if err != nil {
		return nil, err
	}
	spec := threadAndRun("What is the weather in Paris?", map[string]string{"embedded.tool_rounds": "2"}, weather)
	start := &pb.ConverseRunRequest_Start{Start: &pb.ConverseStart{ThreadAndRun: spec}}
	if err := conversation.Send(&pb.ConverseRunRequest{Message: start}); err != nil {
		return nil, err
	}
	var answer string
	var run *pb.Run
	for {
		event, err := conversation.Recv()
		if errors.Is(err, io.EOF) {
			fmt.Printf("  %s\n", answer)
			return run, nil
		}
		if err != nil {
			return nil, err
		}
		answer += textOf(event)
		if event.GetRun() != nil {
			run = event.GetRun()
		}
		if event.GetType() != pb.RunEventType_RUN_EVENT_TYPE_THREAD_RUN_REQUIRES_ACTION {
			continue
		}
		outputs, err := callTools(run.GetRequiredAction().GetSubmitToolOutputs().GetToolCalls())
		if err != nil {
			return nil, err
		}
		if err := conversation.Send(&pb.ConverseRunRequest{Message: outputs}); err != nil {
			return nil, err
		}
	}
}

func callTools(calls []*pb.RequiredToolCall) (*pb.ConverseRunRequest_ToolOutputs, error) {
	outputs := &pb.ToolOutputs{}
	for _, call := range calls {
		fmt.Printf("  %s(%s)\n", call.GetFunction().GetName(), call.GetFunction().GetArguments())
		var arguments struct{ City string }
		if err := json.Unmarshal([]byte(call.GetFunction().GetArguments()), &arguments); err != nil {
			return nil, err
		}
		output := &pb.ToolOutput{ToolCallId: call.GetId(), Output: proto.String("sunny in " + arguments.City)}
		outputs.ToolOutputs = append(outputs.ToolOutputs, output)
	}
	return &pb.ConverseRunRequest_ToolOutputs{ToolOutputs: outputs}, nil
}

func waitWithADeadline(ctx context.Context, runs pb.RunServiceClient) error {
	fmt.Println("wait for a run with a deadline")
	// Left alone, this run says nothing for ten minutes.
	spec := threadAndRun("Take your time.", map[string]string{"embedded.scenario": "expire"})
	run, err := runs.CreateThreadAndRun(ctx, &pb.CreateThreadAndRunRequest{ThreadAndRun: spec})
	if err != nil {
		return err
	}
	wait := func(time time.Duration) (*pb.Run, error) {
		ctx, cancel := context.WithTimeout(ctx, time)
		defer cancel()
		return runs.WaitRun(ctx, &pb.WaitRunRequest{ThreadId: run.GetThreadId(), RunId: run.GetId()})
	}
	_, err = wait(300 * time.Millisecond)
	fmt.Printf("  %s\n", codeOf(err))
	cancel := &pb.CancelRunRequest{ThreadId: run.GetThreadId(), RunId: run.GetId()}
	if _, err := runs.CancelRun(ctx, cancel); err != nil {
		return err
	}
	ended, err := wait(30 * time.Second)
	fmt.Printf("  %s\n", ended.GetStatus())
	return err
}

// codeOf is the name of an error's code as the other languages have it.
func codeOf(err error) string {
	var name strings.Builder
	for at, letter := range status.Code(err).String() {
		if at > 0 && letter < 'a' {
			name.WriteByte('_')
		}
		name.WriteRune(letter)
	}
	return strings.ToUpper(name.String())
}

// describe is an error's code, and what its details say.
func describe(err error) string {
	var info, said string
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			info = detail.GetReason()
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				said += fmt.Sprintf(", %s %s", violation.GetField(), violation.GetDescription())
			}
		case *errdetails.RetryInfo:
			said += fmt.Sprintf(", again in %d ms", detail.GetRetryDelay().AsDuration().Milliseconds())
		}
	}
	return fmt.Sprintf("%s, %s%s", codeOf(err), info, said)
}

func readErrorDetails(ctx context.Context, runs pb.RunServiceClient) {
	fmt.Println("read error details")
	_, err := runs.GetRun(ctx, &pb.GetRunRequest{RunId: "run_1"})
	fmt.Printf("  %s\n", describe(err))
	_, err = runs.GetRun(ctx, &pb.GetRunRequest{ThreadId: "thread_nowhere", RunId: "run_1"})
	fmt.Printf("  %s\n", describe(err))
	busy := threadAndRun("Are you busy?", map[string]string{"embedded.refuse": "429"})
	_, err = runs.CreateThreadAndRun(ctx, &pb.CreateThreadAndRunRequest{ThreadAndRun: busy})
	fmt.Printf("  %s\n", describe(err))
}

func pageThroughSteps(ctx context.Context, steps pb.RunStepServiceClient, run *pb.Run) error {
	fmt.Println("page through steps")
	request := &pb.ListRunStepsRequest{ThreadId: run.GetThreadId(), RunId: run.GetId(), Limit: proto.Int32(2)}
	for {
		page, err := steps.ListRunSteps(ctx, request)
		if err != nil {
			return err
		}
		var types []string
		for _, step := range page.GetData() {
			types = append(types, step.GetType().String())
		}
		fmt.Printf("  %s\n", strings.Join(types, ", "))
		if !page.GetHasMore() {
			return nil
		}
		request.After = page.GetLastId()
	}
}

func run(address string) error {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, runs := context.Background(), pb.NewRunServiceClient(connection)
	if err := fromNothingToAnAnswer(ctx, connection); err != nil {
		return err
	}
	if err := streamARun(ctx, runs); err != nil {
		return err
	}
	conversed, err := answerToolCalls(ctx, runs)
	if err != nil {
		return err
	}
	if err := waitWithADeadline(ctx, runs); err != nil {
		return err
	}
	readErrorDetails(ctx, runs)
	return pageThroughSteps(ctx, pb.NewRunStepServiceClient(connection), conversed)
}

func main() {
	address := "127.0.0.1:50051"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	if err := run(address); err != nil {
		log.Fatal(err)
	}
}
