package main

import (
	"context"
	_ "embed"
	"errors"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

//go:generate sh -c "protoc -I ../../../proto --plugin=$(go tool -n protoc-gen-go) --plugin=$(go tool -n protoc-gen-go-grpc) --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative plex/v1/gateway.proto"

// Retries the calls that only read, and gives them a deadline. Whether a push may go out twice is for its caller to
// say.
//
//go:embed service_config.json
var serviceConfig string

// dial opens a channel to the gateway of the environment. It connects at the first call.
func dial() (*grpc.ClientConn, error) {
	secret := os.Getenv("PLEX_SECRET")
	if secret == "" {
		return nil, errors.New("PLEX_SECRET isn't set")
	}
	target := os.Getenv("PLEX_CONTROL")
	if target == "" {
		target = "127.0.0.1:9580"
	}
	transport := insecure.NewCredentials()
	if ca := os.Getenv("PLEX_CA"); ca != "" {
		var err error
		if transport, err = credentials.NewClientTLSFromFile(ca, ""); err != nil {
			return nil, err
		}
	}
	// After a restart of the gateway nobody should wait for two minutes, which is gRPC's own limit.
	reconnect := backoff.DefaultConfig
	reconnect.MaxDelay = 10 * time.Second
	return grpc.NewClient(target,
		grpc.WithTransportCredentials(transport),
		grpc.WithPerRPCCredentials(bearer(secret)),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 5 * time.Second}),
		// A peer that is gone without a word is noticed by streams that only listen, too.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	)
}

// bearer shows the secret with each call.
type bearer string

func (secret bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(secret)}, nil
}

// RequireTransportSecurity lets the secret go without TLS to a gateway on the same machine.
func (bearer) RequireTransportSecurity() bool { return false }
