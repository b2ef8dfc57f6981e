// Asks a cloner for a voice and for a failure, as a service in Go would: with gRPC's defaults.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	precallv1 "github.com/precall/precall/gen/go/precall/v1"
)

func main() {
	target, token, file := os.Args[1], os.Args[2], os.Args[3]
	sample, err := os.ReadFile(file)
	if err != nil {
		log.Fatal(err)
	}
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	client := precallv1.NewCloningServiceClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)

	cloned, err := client.CloneVoice(ctx, &precallv1.CloneVoiceRequest{
		Caller: &precallv1.Caller{Name: "Ivan", PhoneNumber: "+31612345678"},
		Sample: sample,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(cloned.GetVoice().GetVoiceId())

	_, err = client.GetVoice(ctx, &precallv1.GetVoiceRequest{VoiceId: "voice_of_nobody"})
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			fmt.Println(status.Code(err), info.GetReason())
		}
	}
}
