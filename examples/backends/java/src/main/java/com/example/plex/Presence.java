package com.example.plex;

import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.stub.BlockingClientCall;
import io.plex.v1.GatewayGrpc;
import io.plex.v1.OfflineReason;
import io.plex.v1.OnlineStatusEvent;
import io.plex.v1.OnlineStatusKind;
import io.plex.v1.OnlineStatusRequest;
import io.plex.v1.OnlineStatusResponse;
import java.util.EnumSet;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ThreadLocalRandom;

/** Who is online, folded from the events of OnlineStatus. One thread follows; any may ask. */
final class Presence {
    /** Gets the news. */
    interface Listener {
        void changed(Change change);

        /** From here on all is known. */
        void live();
    }

    /** The news of one uid; {@code reason} is null for who is online, and where nobody knows. */
    record Change(String uid, boolean online, long epoch, String reason) {}

    /** Waits before a stream is begun again: a random part of a limit that doubles from the first to the last. */
    private static final long FIRST_WAIT_MILLIS = 500;

    private static final long LAST_WAIT_MILLIS = 10_000;

    /** What no other try would help against. */
    private static final Set<Status.Code> FINAL = EnumSet.of(
            Status.Code.UNAUTHENTICATED,
            Status.Code.PERMISSION_DENIED,
            Status.Code.INVALID_ARGUMENT,
            Status.Code.UNIMPLEMENTED);

    /** The highest epoch seen is kept of who is offline, too, so that old news is seen to be old. */
    private final Map<String, Change> known = new ConcurrentHashMap<>();

    private final Listener listener;

    /** Who was named in the snapshot that is being told; null while none is. */
    private Set<String> told;

    /** Where the next stream goes on; empty: with a snapshot. */
    private String cursor = "";

    private long limit = FIRST_WAIT_MILLIS;

    Presence(Listener listener) {
        this.listener = listener;
    }

    /** Whether the uid was online by the last news. */
    boolean online(String uid) {
        Change last = known.get(uid);
        return last != null && last.online();
    }

    /**
     * Follows these uids, or all where there are none, over broken connections and restarts of the gateway.
     *
     * @throws StatusException where no other try would help
     */
    void follow(ManagedChannel channel, List<String> uids) throws StatusException, InterruptedException {
        while (true) {
            String end = "the stream has ended";
            try {
                stream(channel, uids);
            } catch (StatusException broken) {
                if (FINAL.contains(broken.getStatus().getCode())) {
                    throw broken;
                }
                end = broken.getMessage();
            }
            long wait = ThreadLocalRandom.current().nextLong(limit);
            limit = Math.min(2 * limit, LAST_WAIT_MILLIS);
            System.err.printf("presence: %s; again in %d ms%n", end, wait);
            Thread.sleep(wait);
            // After a restart of the gateway nobody should wait for two minutes, which is gRPC's own limit.
            channel.resetConnectBackoff();
        }
    }

    /** Folds one stream up to its end. It has no deadline: it is meant to last. */
    private void stream(ManagedChannel channel, List<String> uids) throws StatusException, InterruptedException {
        if (cursor.isEmpty()) {
            told = new HashSet<>();
        }
        BlockingClientCall<?, OnlineStatusResponse> stream = GatewayGrpc.newBlockingV2Stub(channel)
                .onlineStatus(OnlineStatusRequest.newBuilder().addAllUids(uids).setResumeAfter(cursor).build());
        try {
            OnlineStatusResponse response;
            while ((response = stream.read()) != null) {
                response.getEventsList().forEach(this::fold);
                // None is given in the middle of a snapshot.
                if (!response.getCursor().isEmpty()) {
                    cursor = response.getCursor();
                }
            }
        } finally {
            stream.cancel("not read any more", null);
        }
    }

    private void fold(OnlineStatusEvent event) {
        switch (event.getKind()) {
            case ONLINE_STATUS_KIND_RESET -> {
                told = new HashSet<>();
                cursor = "";
            }
            case ONLINE_STATUS_KIND_SNAPSHOT, ONLINE_STATUS_KIND_CHANGE -> {
                if (told != null) {
                    told.add(event.getUid());
                }
                Change last = known.get(event.getUid());
                long highest = last == null ? 0 : last.epoch();
                boolean snapshot = event.getKind() == OnlineStatusKind.ONLINE_STATUS_KIND_SNAPSHOT;
                if (event.getEpoch() > highest || snapshot && event.getEpoch() == highest) {
                    set(new Change(event.getUid(), event.getOnline(), event.getEpoch(), reason(event)));
                }
            }
            case ONLINE_STATUS_KIND_LIVE -> {
                // Until here the old stayed true. Who wasn't told by now has gone, at a moment that nobody knows.
                if (told != null) {
                    known.values().stream()
                            .filter(last -> last.online() && !told.contains(last.uid()))
                            .toList()
                            .forEach(last -> set(new Change(last.uid(), false, last.epoch(), null)));
                    told = null;
                }
                limit = FIRST_WAIT_MILLIS;
                listener.live();
            }
            default -> {} // a kind that came after this program
        }
    }

    /** Takes over what is new, and tells it where it makes a difference. */
    private void set(Change change) {
        boolean was = online(change.uid());
        known.put(change.uid(), change);
        if (was != change.online()) {
            listener.changed(change);
        }
    }

    /** Why it went offline; null for who is online. */
    private static String reason(OnlineStatusEvent event) {
        if (event.getOnline()) {
            return null;
        }
        OfflineReason reason = event.getReason();
        // One that came after this program is UNRECOGNIZED.
        return reason == OfflineReason.UNRECOGNIZED ? "UNSPECIFIED" : reason.name().replace("OFFLINE_REASON_", "");
    }
}
