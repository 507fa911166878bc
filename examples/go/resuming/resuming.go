// Package resuming has a stream of a run that goes on where it broke, on whichever replica answers; to copy from.
package resuming

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/runs-gateway/runs-gateway/examples/go/gen/runsgateway/v1"
)

// How often in a row, and for how long, a stream is resumed. An event that has a position begins a new row.
const (
	maxResumes = 8
	maxOutage  = time.Minute
)

var broken = []codes.Code{codes.Unavailable, codes.Unknown, codes.Internal, codes.Aborted}

// Events gives each event once of a stream that was asked for with Options.Resumable. Where it breaks it is resumed, with ctx, which also carries
// the metadata; the last pair has the error that it could not be resumed after.
func Events(ctx context.Context, runs pb.RunServiceClient, events grpc.ServerStreamingClient[pb.RunEvent]) iter.Seq2[*pb.RunEvent, error] {
	return func(yield func(*pb.RunEvent, error) bool) {
		place, resumes, until := &pb.ResumeRunRequest{}, 0, time.Time{}
		var err error
		for {
			var event *pb.RunEvent
			if err == nil {
				event, err = events.Recv()
			}
			if err == nil {
				if run := event.GetRun(); run != nil {
					place.ThreadId, place.RunId = run.GetThreadId(), run.GetId()
				}
				if event.GetPosition() != "" {
					place.AfterPosition, resumes = event.GetPosition(), 0
				}
				if !yield(event, nil) {
					return
				}
				continue
			}
			if errors.Is(err, io.EOF) {
				return
			}
			learn(place, err)
			if resumes == 0 {
				until = time.Now().Add(maxOutage)
			}
			if !slices.Contains(broken, status.Code(err)) || place.RunId == "" || resumes == maxResumes || time.Now().After(until) {
				yield(nil, err)
				return
			}
			time.Sleep(min(100*time.Millisecond<<resumes, 5*time.Second))
			resumes++
			events, err = runs.ResumeRun(ctx, place)
		}
	}
}

// learn takes the run from an error, which may name it before any event has. What nobody names cannot be resumed.
func learn(place *pb.ResumeRunRequest, err error) {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && place.RunId == "" {
			place.ThreadId, place.RunId = info.GetMetadata()["thread_id"], info.GetMetadata()["run_id"]
		}
	}
}
