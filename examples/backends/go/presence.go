package main

import (
	"context"
	"io"
	"log"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	plexv1 "example.com/plex-backend/plex/v1"
)

// Waits before a stream is begun again: a random part of a limit that doubles from the first to the last.
const (
	firstWait = 500 * time.Millisecond
	lastWait  = 10 * time.Second
)

// Change is the news of one uid.
type Change struct {
	UID    string `json:"uid"`
	Online bool   `json:"online"`
	Epoch  int64  `json:"epoch,string"`
	Reason string `json:"reason,omitempty"`
}

// Presence is who is online, folded from the events of OnlineStatus. Its zero value knows nobody. One goroutine follows;
// any may ask.
type Presence struct {
	mutex sync.RWMutex // over writing known, and over reading it in any other goroutine
	known map[string]state
	// Who was named in the snapshot that is being told; nil while none is.
	told map[string]bool
	// Where the next stream goes on; empty: with a snapshot.
	cursor string
}

type state struct {
	online bool
	epoch  int64 // the highest seen: also of who is offline, so that old news is seen to be old
}

// Online tells whether the uid was online by the last news.
func (p *Presence) Online(uid string) bool {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	return p.known[uid].online
}

// Follow keeps p up to date, over broken connections and restarts of the gateway. It gives each change to changed, and
// calls live whenever all is known. It returns when ctx ends, or where no other try would help.
func (p *Presence) Follow(
	ctx context.Context, gateway plexv1.GatewayClient, uids []string, changed func(Change), live func(),
) error {
	limit := firstWait
	for {
		err := p.stream(ctx, gateway, uids, changed, func() {
			limit = firstWait
			live()
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch status.Code(err) {
		case codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument, codes.Unimplemented:
			return err
		}
		wait := rand.N(limit)
		limit = min(2*limit, lastWait)
		log.Printf("presence: %v; again in %v", err, wait)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// stream folds one stream up to its end. It has no deadline: it is meant to last.
func (p *Presence) stream(
	ctx context.Context, gateway plexv1.GatewayClient, uids []string, changed func(Change), live func(),
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if p.cursor == "" {
		p.told = map[string]bool{}
	}
	stream, err := gateway.OnlineStatus(ctx, &plexv1.OnlineStatusRequest{Uids: uids, ResumeAfter: p.cursor})
	for err == nil {
		var response *plexv1.OnlineStatusResponse
		if response, err = stream.Recv(); err != nil {
			break
		}
		for _, event := range response.Events {
			p.fold(event, changed, live)
		}
		// None is given in the middle of a snapshot.
		if response.Cursor != "" {
			p.cursor = response.Cursor
		}
	}
	if err == io.EOF {
		return status.Error(codes.Unavailable, "the stream has ended")
	}
	return err
}

func (p *Presence) fold(event *plexv1.OnlineStatusEvent, changed func(Change), live func()) {
	switch event.Kind {
	case plexv1.OnlineStatusKind_ONLINE_STATUS_KIND_RESET:
		p.told = map[string]bool{}
		p.cursor = ""
	case plexv1.OnlineStatusKind_ONLINE_STATUS_KIND_SNAPSHOT, plexv1.OnlineStatusKind_ONLINE_STATUS_KIND_CHANGE:
		if p.told != nil {
			p.told[event.Uid] = true
		}
		known := p.known[event.Uid]
		snapshot := event.Kind == plexv1.OnlineStatusKind_ONLINE_STATUS_KIND_SNAPSHOT
		if event.Epoch > known.epoch || snapshot && event.Epoch == known.epoch {
			p.set(Change{UID: event.Uid, Online: event.Online, Epoch: event.Epoch, Reason: reason(event)}, changed)
		}
	case plexv1.OnlineStatusKind_ONLINE_STATUS_KIND_LIVE:
		// Until here the old stayed true. Who wasn't told by now has gone, at a moment that nobody knows.
		if p.told != nil {
			for uid, known := range p.known {
				if known.online && !p.told[uid] {
					p.set(Change{UID: uid, Epoch: known.epoch}, changed)
				}
			}
			p.told = nil
		}
		live()
	}
}

// set takes over what is new, and tells it where it makes a difference.
func (p *Presence) set(change Change, changed func(Change)) {
	p.mutex.Lock()
	if p.known == nil {
		p.known = map[string]state{}
	}
	was := p.known[change.UID].online
	p.known[change.UID] = state{online: change.Online, epoch: change.Epoch}
	p.mutex.Unlock()
	if was != change.Online {
		changed(change)
	}
}

// reason tells why it went offline: empty for who is online.
func reason(event *plexv1.OnlineStatusEvent) string {
	if event.Online {
		return ""
	}
	return strings.TrimPrefix(event.Reason.String(), "OFFLINE_REASON_")
}
