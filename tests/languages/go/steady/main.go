// Calls cloners all the time, with gRPC's defaults, until its input ends; says how many calls were answered.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	precallv1 "github.com/precall/precall/gen/go/precall/v1"
)

func main() {
	// In the place of a name with several addresses.
	addresses := manual.NewBuilderWithScheme("cloners")
	var state resolver.State
	for _, address := range os.Args[1:] {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: address})
	}
	addresses.InitialState(state)
	connection, err := grpc.NewClient("cloners:///", grpc.WithResolvers(addresses),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	client := precallv1.NewCloningServiceClient(connection)

	var answered, lost atomic.Int64
	var ended atomic.Bool
	tell := func(err error) {
		if err == nil {
			if answered.Add(1)%250 == 0 {
				fmt.Println("answered", answered.Load())
			}
			return
		}
		lost.Add(1)
		fmt.Println("lost", err)
	}
	var callers sync.WaitGroup
	for caller := range 8 {
		callers.Go(func() {
			for number := 0; !ended.Load(); number++ {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				_, err := client.ListVoices(ctx, &precallv1.ListVoicesRequest{})
				tell(err)
				_, err = client.OpenCall(ctx, &precallv1.OpenCallRequest{
					AgentId: "agent_demo", ConversationId: fmt.Sprintf("conv_%d_%d", caller, number),
				})
				tell(err)
				cancel()
				// Often enough to meet every moment of a restart, and other tests need the processor, too.
				time.Sleep(60 * time.Millisecond)
			}
		})
	}
	io.Copy(io.Discard, os.Stdin)
	ended.Store(true)
	callers.Wait()
	fmt.Println("end", answered.Load() > 0, lost.Load())
}
