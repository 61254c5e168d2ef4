// A backend of plex: pushes to devices, and follows who is online. ../README.md describes its command line.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"math"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	plexv1 "example.com/plex-backend/plex/v1"
)

const usage = `usage: backend push [--ack SECONDS] UID URI BODY
       backend stream < PUSHES
       backend many URI BODY UID...
       backend many URI BODY < UIDS
       backend online UID...
       backend online < UIDS
       backend watch [UID...]
`

const (
	// How long a push may take, aside from the device's own answer.
	callTimeout = 5 * time.Second
	uidsMax     = 10_000
	// What goes into one message of a stream: the gateway takes 1,000 pushes and 4 MiB.
	batchPushes = 1_000
	batchBytes  = 1 << 20
)

var errUsage = errors.New(usage)

func main() {
	log.SetFlags(0)
	err := run(os.Args[1:])
	switch refused, answered := status.FromError(err); {
	case err == nil:
	case errors.Is(err, errUsage):
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	case answered:
		log.Fatalf("%v: %s", refused.Code(), refused.Message())
	default:
		log.Fatal(err)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	command, args := args[0], args[1:]
	conn, err := dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	gateway := plexv1.NewGatewayClient(conn)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	switch {
	case command == "push":
		flags := flag.NewFlagSet("push", flag.ContinueOnError)
		flags.SetOutput(io.Discard)
		ack := flags.Float64("ack", 0, "how many seconds to wait for the device's answer")
		if flags.Parse(args) != nil || flags.NArg() != 3 {
			return errUsage
		}
		return push(ctx, gateway, input{flags.Arg(0), flags.Arg(1), flags.Arg(2), *ack})
	case command == "stream" && len(args) == 0:
		return stream(ctx, gateway)
	case command == "many" && len(args) >= 2:
		return many(ctx, gateway, args[0], args[1], args[2:])
	case command == "online":
		return online(ctx, gateway, args)
	case command == "watch":
		return watch(ctx, gateway, args)
	default:
		return errUsage
	}
}

// input is a push as it is asked for.
type input struct {
	UID        string  `json:"uid"`
	URI        string  `json:"uri"`
	Body       string  `json:"body"`
	AckSeconds float64 `json:"ack_seconds"`
}

func (i input) request() *plexv1.PushRequest {
	request := &plexv1.PushRequest{Uid: i.UID, Uri: i.URI, Body: i.Body}
	if i.AckSeconds != 0 {
		request.AckTimeout = durationpb.New(i.wait())
	}
	return request
}

func (i input) wait() time.Duration {
	return time.Duration(math.Round(i.AckSeconds * float64(time.Second)))
}

// output is what became of a push.
type output struct {
	UID         string `json:"uid"`
	Status      string `json:"status"`
	Seq         int64  `json:"seq,string"`
	Connections uint32 `json:"connections"`
	Reply       string `json:"reply"`
	Error       string `json:"error"`
}

func outcome(uid string, response *plexv1.PushResponse) output {
	name, known := plexv1.PushStatus_name[int32(response.Status)]
	if !known {
		name = plexv1.PushStatus_PUSH_STATUS_UNKNOWN.String()
	}
	return output{
		UID:         uid,
		Status:      strings.TrimPrefix(name, "PUSH_STATUS_"),
		Seq:         response.Seq,
		Connections: response.Connections,
		Reply:       response.Reply,
		Error:       response.Error,
	}
}

func push(ctx context.Context, gateway plexv1.GatewayClient, push input) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout+push.wait())
	defer cancel()
	response, err := gateway.Push(ctx, push.request())
	if err != nil {
		return err
	}
	return printLine(outcome(push.UID, response))
}

func many(ctx context.Context, gateway plexv1.GatewayClient, uri, body string, uids []string) error {
	uids, err := orInput(uids)
	if err != nil {
		return err
	}
	pushSome := func(some []string) error {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		response, err := gateway.PushMany(ctx, &plexv1.PushManyRequest{Uids: some, Uri: uri, Body: body})
		if err != nil {
			return err
		}
		for i, result := range response.Results {
			if err := printLine(outcome(some[i], result)); err != nil {
				return err
			}
		}
		return nil
	}
	for some := range slices.Chunk(uids, uidsMax) {
		if err := pushSome(some); err != nil {
			return err
		}
	}
	return nil
}

// orInput gives the uids of standard input where none are named.
func orInput(uids []string) ([]string, error) {
	if len(uids) > 0 {
		return uids, nil
	}
	text, err := io.ReadAll(os.Stdin)
	return strings.Fields(string(text)), err
}

// online asks without a deadline of its own: the service config has one for the calls that only read.
func online(ctx context.Context, gateway plexv1.GatewayClient, uids []string) error {
	uids, err := orInput(uids)
	if err != nil {
		return err
	}
	for some := range slices.Chunk(uids, uidsMax) {
		response, err := gateway.IsOnline(ctx, &plexv1.IsOnlineRequest{Uids: some})
		if err != nil {
			return err
		}
		for _, state := range response.States {
			if err := printLine(struct {
				UID         string `json:"uid"`
				Online      bool   `json:"online"`
				Connections uint32 `json:"connections"`
			}{state.Uid, state.Online, state.Connections}); err != nil {
				return err
			}
		}
	}
	return nil
}

func watch(ctx context.Context, gateway plexv1.GatewayClient, uids []string) error {
	var presence Presence
	return presence.Follow(ctx, gateway, uids,
		func(change Change) { printLine(change) },
		func() { printLine(map[string]bool{"live": true}) },
	)
}

// stream pushes what comes on standard input. Results are read while pushes are written: the gateway stops reading
// where too many wait for a result.
func stream(ctx context.Context, gateway plexv1.GatewayClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := gateway.PushStream(ctx)
	if err != nil {
		return err
	}
	waiting := waiting{uids: map[uint64]string{}}
	pushes := make(chan *plexv1.PushRequest, batchPushes)
	badInput := make(chan error, 1)
	go func() {
		badInput <- readPushes(ctx, os.Stdin, pushes)
		close(pushes)
	}()
	go func() {
		for first := range pushes {
			batch := gather(first, pushes)
			waiting.add(batch)
			if stream.Send(&plexv1.PushStreamRequest{Pushes: batch}) != nil {
				return // Recv says why
			}
		}
		stream.CloseSend()
	}()
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			return <-badInput
		}
		if err != nil {
			// These may have been sent, or not. Whether they go out again is for the caller to say.
			for _, uid := range waiting.rest() {
				printLine(outcome(uid, &plexv1.PushResponse{Status: plexv1.PushStatus_PUSH_STATUS_UNKNOWN}))
			}
			return err
		}
		for _, result := range response.Results {
			if err := printLine(outcome(waiting.take(result.Id), result)); err != nil {
				return err
			}
		}
	}
}

// readPushes reads a push from each line, and numbers them.
func readPushes(ctx context.Context, source io.Reader, pushes chan<- *plexv1.PushRequest) error {
	decoder := json.NewDecoder(bufio.NewReader(source))
	for id := uint64(1); ; id++ {
		var push input
		if err := decoder.Decode(&push); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("push %d: %w", id, err)
		}
		request := push.request()
		request.Id = id
		select {
		case pushes <- request:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// gather takes what has come meanwhile, as far as it goes into one message.
func gather(first *plexv1.PushRequest, more <-chan *plexv1.PushRequest) []*plexv1.PushRequest {
	batch, size := []*plexv1.PushRequest{first}, proto.Size(first)
	for len(batch) < batchPushes && size < batchBytes {
		select {
		case push, open := <-more:
			if !open {
				return batch
			}
			batch = append(batch, push)
			size += proto.Size(push)
		default:
			return batch
		}
	}
	return batch
}

// waiting holds whose push each number is, until its result has come.
type waiting struct {
	mutex sync.Mutex
	uids  map[uint64]string
}

func (w *waiting) add(pushes []*plexv1.PushRequest) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	for _, push := range pushes {
		w.uids[push.Id] = push.Uid
	}
}

func (w *waiting) take(id uint64) string {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	uid := w.uids[id]
	delete(w.uids, id)
	return uid
}

func (w *waiting) rest() []string {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	var uids []string
	for _, id := range slices.Sorted(maps.Keys(w.uids)) {
		uids = append(uids, w.uids[id])
	}
	return uids
}

func printLine(value any) error {
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}
