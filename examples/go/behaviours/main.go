// What tests/polyglot holds a Go client to, one line per behaviour; no example to copy.
//
// The arguments are the addresses of four gateways: in front of the embedded API; the same with connections that grow old in a second; in
// front of the scripted upstream of tests/polyglot; the first one, by connections that are cut.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/runs-gateway/runs-gateway/examples/go/gen/runsgateway/v1"
	"github.com/runs-gateway/runs-gateway/examples/go/resuming"
)

type gateways struct{ dev, ageing, scripted, cutting gateway }

type gateway struct {
	pb.RunServiceClient
	threads  pb.ThreadServiceClient
	messages pb.MessageServiceClient
}

func threadAndRun(metadata map[string]string, tools ...*pb.Tool) *pb.ThreadAndRunSpec {
	content := &pb.MessageContent{Text: proto.String("Tell me a long story.")}
	message := &pb.MessageInput{Role: pb.MessageRole_MESSAGE_ROLE_USER, Content: content}
	thread := &pb.ThreadSpec{Messages: []*pb.MessageInput{message}}
	return &pb.ThreadAndRunSpec{AssistantId: "asst_embedded", Thread: thread, Metadata: metadata, Tools: tools}
}

var silent = map[string]string{"embedded.scenario": "expire"}

// detail is the detail of type T that an error carries, or an empty one.
func detail[T any](err error) *T {
	for _, detail := range status.Convert(err).Details() {
		if found, ok := detail.(*T); ok {
			return found
		}
	}
	return new(T)
}

// code is the name of an error's code as the other languages have it.
func code(err error) string {
	return map[codes.Code]string{
		codes.OK: "OK", codes.DeadlineExceeded: "DEADLINE_EXCEEDED", codes.InvalidArgument: "INVALID_ARGUMENT",
		codes.ResourceExhausted: "RESOURCE_EXHAUSTED", codes.Unavailable: "UNAVAILABLE",
		codes.NotFound: "NOT_FOUND",
	}[status.Code(err)]
}

// last reads a stream to its end.
func last(events grpc.ServerStreamingClient[pb.RunEvent]) (event *pb.RunEvent, err error) {
	for {
		next, err := events.Recv()
		if err != nil {
			return event, err
		}
		event = next
	}
}

func metadataBehaviour(ctx context.Context, to gateways) (string, error) {
	var header metadata.MD
	ctx = metadata.AppendToOutgoingContext(ctx, "x-client-request-id", "polyglot")
	request := &pb.GetRunRequest{ThreadId: "thread_1", RunId: "run_paused"}
	_, err := to.scripted.GetRun(ctx, request, grpc.Header(&header))
	return "x-request-id " + strings.Join(header.Get("x-request-id"), ","), err
}

func deadline(ctx context.Context, to gateways) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	request := &pb.StreamCreateThreadAndRunRequest{ThreadAndRun: threadAndRun(silent)}
	events, err := to.dev.StreamCreateThreadAndRun(ctx, request)
	if err != nil {
		return "", err
	}
	_, err = last(events)
	return code(err), nil
}

func cancellation(ctx context.Context, to gateways) (string, error) {
	stream, cancel := context.WithCancel(ctx)
	defer cancel()
	options := &pb.StreamOptions{CancelOnDisconnect: true}
	request := &pb.StreamCreateThreadAndRunRequest{ThreadAndRun: threadAndRun(silent), Options: options}
	events, err := to.dev.StreamCreateThreadAndRun(stream, request)
	if err != nil {
		return "", err
	}
	var run *pb.Run
	for run == nil {
		event, err := events.Recv()
		if err != nil {
			return "", err
		}
		run = event.GetRun()
	}
	cancel()
	wait, done := context.WithTimeout(ctx, 30*time.Second)
	defer done()
	run, err = to.dev.WaitRun(wait, &pb.WaitRunRequest{ThreadId: run.GetThreadId(), RunId: run.GetId()})
	return run.GetStatus().String(), err
}

func errorDetails(ctx context.Context, to gateways) (string, error) {
	_, err := to.scripted.GetRun(ctx, &pb.GetRunRequest{ThreadId: "thread_1", RunId: "run_limited"})
	info, delay := detail[errdetails.ErrorInfo](err), detail[errdetails.RetryInfo](err).GetRetryDelay().AsDuration()
	said := []any{code(err), info.GetDomain(), info.GetReason(), info.GetMetadata()["http_status"], delay.Milliseconds()}
	return fmt.Sprintf("%s %s %s %s, again in %d ms", said...), nil
}

func largeMessages(ctx context.Context, to gateways) (string, error) {
	function := &pb.FunctionDefinition{Name: "f", Description: proto.String(strings.Repeat("x", 1<<20))}
	spec := threadAndRun(nil, &pb.Tool{Function: function})
	run, err := to.dev.CreateThreadAndRun(ctx, &pb.CreateThreadAndRunRequest{ThreadAndRun: spec})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d bytes came back", len(run.GetTools()[0].GetFunction().GetDescription())), nil
}

func unknownEnumValues(ctx context.Context, to gateways) (string, error) {
	run, err := to.scripted.GetRun(ctx, &pb.GetRunRequest{ThreadId: "thread_1", RunId: "run_paused"})
	if err != nil {
		return "", err
	}
	_, err = to.scripted.ListRuns(ctx, &pb.ListRunsRequest{ThreadId: "thread_1", Order: 99})
	var field string
	for _, violation := range detail[errdetails.BadRequest](err).GetFieldViolations() {
		field += violation.GetField()
	}
	return fmt.Sprintf("%s %s, sent: %s %s", run.GetStatus(), run.GetExtraJson(), code(err), field), nil
}

func unknownEvents(ctx context.Context, to gateways) (string, error) {
	request := &pb.StreamCreateRunRequest{ThreadId: "thread_1", Run: &pb.RunSpec{AssistantId: "asst_1"}}
	events, err := to.scripted.StreamCreateRun(ctx, request)
	for err == nil {
		var event *pb.RunEvent
		if event, err = events.Recv(); event.GetUnknown() != nil {
			return fmt.Sprintf("%s %s %s", event.GetType(), event.GetUnknown().GetName(), event.GetUnknown().GetData()), nil
		}
	}
	return "", err
}

func unknownContent(ctx context.Context, to gateways) (string, error) {
	request := &pb.ListMessagesRequest{ThreadId: "thread_1", RunId: "run_1"}
	page, err := to.scripted.messages.ListMessages(ctx, request)
	if err != nil {
		return "", err
	}
	content := page.GetData()[0].GetContent()
	text, unknown := content[0].GetText().GetValue(), content[1]
	return fmt.Sprintf("%s %s %s", text, unknown.GetType(), unknown.GetExtraJson()), nil
}

func deletion(ctx context.Context, to gateways) (string, error) {
	threads := to.dev.threads
	thread, err := threads.CreateThread(ctx, &pb.CreateThreadRequest{})
	if err != nil {
		return "", err
	}
	deleted, err := threads.DeleteThread(ctx, &pb.DeleteThreadRequest{ThreadId: thread.GetId()})
	if err != nil {
		return "", err
	}
	_, err = threads.GetThread(ctx, &pb.GetThreadRequest{ThreadId: thread.GetId()})
	return fmt.Sprintf("%s, then %s", deleted.GetObject(), code(err)), nil
}

func resumingBehaviour(ctx context.Context, to gateways) (string, error) {
	request := &pb.StreamCreateThreadAndRunRequest{ThreadAndRun: threadAndRun(map[string]string{"embedded.delay_ms": "150"})}
	events, err := to.ageing.StreamCreateThreadAndRun(ctx, request)
	if err != nil {
		return "", err
	}
	_, err = last(events)
	info := detail[errdetails.ErrorInfo](err)
	said := fmt.Sprintf("%s %s", code(err), info.GetReason())
	watch := &pb.WatchRunRequest{ThreadId: info.GetMetadata()["thread_id"], RunId: info.GetMetadata()["run_id"]}
	for status.Code(err) == codes.Unavailable {
		if events, err = to.ageing.WatchRun(ctx, watch); err != nil {
			continue
		}
		var event *pb.RunEvent
		if event, err = last(events); status.Code(err) != codes.Unavailable {
			return fmt.Sprintf("%s, then %s", said, event.GetType()), nil
		}
	}
	return said, err
}

func resumedStream(ctx context.Context, to gateways) (string, error) {
	spec := threadAndRun(map[string]string{"embedded.delay_ms": "50"})
	request := &pb.StreamCreateThreadAndRunRequest{ThreadAndRun: spec, Options: &pb.StreamOptions{Resumable: true}}
	events, err := to.cutting.StreamCreateThreadAndRun(ctx, request)
	if err != nil {
		return "", err
	}
	var text string
	var last *pb.RunEvent
	count := 0
	for event, err := range resuming.Events(ctx, to.cutting, events) {
		if err != nil {
			return "", err
		}
		for _, part := range event.GetMessageDelta().GetDelta().GetContent() {
			text += part.GetText().GetValue()
		}
		last = event
		count++
	}
	return fmt.Sprintf("%s %d events, %s", text, count, last.GetType()), nil
}

func main() {
	var clients []gateway
	for _, address := range os.Args[1:] {
		connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			log.Fatal(err)
		}
		defer connection.Close()
		clients = append(clients, gateway{
			pb.NewRunServiceClient(connection),
			pb.NewThreadServiceClient(connection),
			pb.NewMessageServiceClient(connection),
		})
	}
	to := gateways{clients[0], clients[1], clients[2], clients[3]}
	for _, behaviour := range []struct {
		name string
		show func(context.Context, gateways) (string, error)
	}{
		{"metadata", metadataBehaviour},
		{"deadline", deadline},
		{"cancellation", cancellation},
		{"error details", errorDetails},
		{"1 MiB messages", largeMessages},
		{"unknown enum values", unknownEnumValues},
		{"unknown events", unknownEvents},
		{"unknown content", unknownContent},
		{"deletion", deletion},
		{"resuming", resumingBehaviour},
		{"resumed stream", resumedStream},
	} {
		said, err := behaviour.show(context.Background(), to)
		if err != nil {
			log.Fatalf("%s: %v", behaviour.name, err)
		}
		fmt.Printf("%s: %s\n", behaviour.name, said)
	}
}
