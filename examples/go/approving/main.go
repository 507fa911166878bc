// A run whose tools are those of MCP servers, with the calls approved or refused in a conversation.
//
// The arguments: the gateway's address, and an assistant that has such tools. This one may search, and do nothing else.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	pb "github.com/runs-gateway/runs-gateway/examples/go/gen/runsgateway/v1"
)

var allowed = map[string]bool{"search": true}

// decide is the approval of one call. Headers that the MCP server wants are given with it.
func decide(call *pb.RequiredToolCall) *pb.ToolApproval {
	approval := &pb.ToolApproval{ToolCallId: call.GetId(), Approve: proto.Bool(allowed[call.GetName()])}
	decision := "refused"
	if approval.GetApprove() {
		decision = "approved"
		approval.Headers = map[string]string{"authorization": "Bearer mcp-key"}
	}
	fmt.Printf("%s(%s) of %s: %s\n", call.GetName(), call.GetArguments(), call.GetServerLabel(), decision)
	return approval
}

func converse(ctx context.Context, runs pb.RunServiceClient, assistantID, question string) error {
	conversation, err := runs.ConverseRun(ctx)
	if err != nil {
		return err
	}
	content := &pb.MessageContent{Text: proto.String(question)}
	message := &pb.MessageInput{Role: pb.MessageRole_MESSAGE_ROLE_USER, Content: content}
	thread := &pb.ThreadSpec{Messages: []*pb.MessageInput{message}}
	spec := &pb.ThreadAndRunSpec{AssistantId: assistantID, Thread: thread}
	start := &pb.ConverseRunRequest_Start{Start: &pb.ConverseStart{ThreadAndRun: spec}}
	if err := conversation.Send(&pb.ConverseRunRequest{Message: start}); err != nil {
		return err
	}
	var answer string
	var run *pb.Run
	for {
		event, err := conversation.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		for _, part := range event.GetMessageDelta().GetDelta().GetContent() {
			answer += part.GetText().GetValue()
		}
		if event.GetRun() != nil {
			run = event.GetRun()
		}
		if event.GetType() != pb.RunEventType_RUN_EVENT_TYPE_THREAD_RUN_REQUIRES_ACTION {
			continue
		}
		outputs := &pb.ToolOutputs{}
		for _, call := range run.GetRequiredAction().GetSubmitToolApproval().GetToolCalls() {
			outputs.ToolApprovals = append(outputs.ToolApprovals, decide(call))
		}
		given := &pb.ConverseRunRequest_ToolOutputs{ToolOutputs: outputs}
		if err := conversation.Send(&pb.ConverseRunRequest{Message: given}); err != nil {
			return err
		}
	}
	fmt.Printf("%s: %s\n", run.GetStatus(), answer)
	return nil
}

func main() {
	connection, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	if err := converse(context.Background(), pb.NewRunServiceClient(connection), os.Args[2], "What is new?"); err != nil {
		log.Fatal(err)
	}
}
