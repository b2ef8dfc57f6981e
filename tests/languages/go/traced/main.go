// Clones a voice and watches it within a trace of its own, as OpenTelemetry's instrumentation of gRPC carries it.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/propagation"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	precallv1 "github.com/precall/precall/gen/go/precall/v1"
)

func main() {
	sample, err := os.ReadFile(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	spans := tracetest.NewInMemoryExporter()
	tracing := sdk.NewTracerProvider(sdk.WithSyncer(spans))
	connection, err := grpc.NewClient(os.Args[1],
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(
			otelgrpc.WithTracerProvider(tracing), otelgrpc.WithPropagators(propagation.TraceContext{}))))
	if err != nil {
		log.Fatal(err)
	}
	client := precallv1.NewCloningServiceClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ctx, root := tracing.Tracer("caller").Start(ctx, "root")

	cloned, err := client.CloneVoice(ctx, &precallv1.CloneVoiceRequest{
		Caller: &precallv1.Caller{Name: "Ivan", PhoneNumber: "+31612345678"},
		Sample: sample,
	})
	if err != nil {
		log.Fatal(err)
	}
	watching, stop := context.WithCancel(ctx)
	stream, err := client.WatchVoice(watching, &precallv1.WatchVoiceRequest{VoiceId: cloned.GetVoice().GetVoiceId()})
	if err != nil {
		log.Fatal(err)
	}
	if _, err = stream.Recv(); err != nil {
		log.Fatal(err)
	}
	stop()
	stream.Recv()
	connection.Close()
	root.End()
	for _, span := range spans.GetSpans() {
		fmt.Println(span.SpanContext.TraceID(), span.SpanContext.SpanID(), span.Name)
	}
}
