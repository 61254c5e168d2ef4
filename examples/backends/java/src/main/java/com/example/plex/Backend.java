package com.example.plex;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonParseException;
import com.google.gson.LongSerializationPolicy;
import com.google.gson.annotations.SerializedName;
import com.google.protobuf.Duration;
import io.grpc.ManagedChannel;
import io.grpc.StatusException;
import io.grpc.stub.BlockingClientCall;
import io.plex.v1.GatewayGrpc;
import io.plex.v1.IsOnlineRequest;
import io.plex.v1.OnlineState;
import io.plex.v1.PushManyRequest;
import io.plex.v1.PushRequest;
import io.plex.v1.PushResponse;
import io.plex.v1.PushStatus;
import io.plex.v1.PushStreamRequest;
import io.plex.v1.PushStreamResponse;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Scanner;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ConcurrentSkipListMap;
import java.util.concurrent.TimeUnit;

/** A backend of plex: pushes to devices, and follows who is online. ../README.md describes its command line. */
public final class Backend {
    private static final String USAGE =
            """
            usage: backend push [--ack SECONDS] UID URI BODY
                   backend stream < PUSHES
                   backend many URI BODY UID...
                   backend many URI BODY < UIDS
                   backend online UID...
                   backend online < UIDS
                   backend watch [UID...]""";

    /** How long a push may take, aside from the device's own answer. */
    private static final double CALL_SECONDS = 5;

    private static final int UIDS_MAX = 10_000;

    /** What goes into one message of a stream: the gateway takes 1,000 pushes and 4 MiB. */
    private static final int BATCH_PUSHES = 1_000;

    private static final int BATCH_BYTES = 1 << 20;

    private static final Gson GSON = new GsonBuilder()
            .setLongSerializationPolicy(LongSerializationPolicy.STRING)
            .disableHtmlEscaping()
            .create();

    private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);

    private final ManagedChannel channel;
    private final GatewayGrpc.GatewayBlockingV2Stub gateway;

    private Backend(ManagedChannel channel) {
        this.channel = channel;
        this.gateway = GatewayGrpc.newBlockingV2Stub(channel);
    }

    public static void main(String[] args) throws InterruptedException {
        System.exit(run(args));
    }

    private static int run(String[] args) throws InterruptedException {
        try {
            Map<String, String> environment = System.getenv();
            if (environment.getOrDefault("PLEX_SECRET", "").isEmpty()) {
                throw new IOException("PLEX_SECRET isn't set");
            }
            ManagedChannel channel = Channels.open(environment);
            try {
                return new Backend(channel).command(List.of(args));
            } finally {
                channel.shutdownNow();
            }
        } catch (StatusException refused) {
            System.err.println(refused.getMessage());
        } catch (NumberFormatException notSeconds) {
            System.err.println(USAGE);
            return 2;
        } catch (IOException | BadInput wrong) {
            System.err.println(wrong.getMessage());
        }
        return 1;
    }

    private int command(List<String> args) throws IOException, StatusException, InterruptedException {
        String command = args.isEmpty() ? "" : args.get(0);
        List<String> rest = args.subList(Math.min(1, args.size()), args.size());
        if (command.equals("push") && rest.size() == 3) {
            push(new Input(rest.get(0), rest.get(1), rest.get(2), null));
        } else if (command.equals("push") && rest.size() == 5 && rest.get(0).equals("--ack")) {
            push(new Input(rest.get(2), rest.get(3), rest.get(4), Double.valueOf(rest.get(1))));
        } else if (command.equals("stream") && rest.isEmpty()) {
            stream();
        } else if (command.equals("many") && rest.size() >= 2) {
            many(rest.get(0), rest.get(1), rest.subList(2, rest.size()));
        } else if (command.equals("online")) {
            online(rest);
        } else if (command.equals("watch")) {
            watch(rest);
        } else {
            System.err.println(USAGE);
            return 2;
        }
        return 0;
    }

    /** A push as it is asked for. */
    private record Input(String uid, String uri, String body, @SerializedName("ack_seconds") Double ackSeconds) {
        Input {
            uid = Objects.requireNonNullElse(uid, "");
            uri = Objects.requireNonNullElse(uri, "");
            body = Objects.requireNonNullElse(body, "");
        }

        PushRequest.Builder request() {
            PushRequest.Builder request = PushRequest.newBuilder().setUid(uid).setUri(uri).setBody(body);
            if (ackSeconds != null) {
                long nanos = Math.round(ackSeconds * 1e9);
                request.setAckTimeout(Duration.newBuilder()
                        .setSeconds(nanos / 1_000_000_000)
                        .setNanos((int) (nanos % 1_000_000_000)));
            }
            return request;
        }
    }

    /** What became of a push. */
    private record Outcome(String uid, String status, long seq, int connections, String reply, String error) {
        static Outcome of(String uid, PushResponse response) {
            PushStatus status = response.getStatus();
            return new Outcome(
                    uid,
                    // One that came after this program is UNRECOGNIZED.
                    status == PushStatus.UNRECOGNIZED ? "UNKNOWN" : status.name().replace("PUSH_STATUS_", ""),
                    response.getSeq(),
                    response.getConnections(),
                    response.getReply(),
                    response.getError());
        }
    }

    private record Online(String uid, boolean online, int connections) {}

    private void push(Input push) throws StatusException, InterruptedException {
        double seconds = CALL_SECONDS + (push.ackSeconds() == null ? 0 : push.ackSeconds());
        PushResponse response = gateway.withDeadlineAfter(Math.round(seconds * 1e3), TimeUnit.MILLISECONDS)
                .push(push.request().build());
        write(Outcome.of(push.uid(), response));
    }

    private void many(String uri, String body, List<String> uids) throws StatusException, InterruptedException {
        PushManyRequest.Builder request = PushManyRequest.newBuilder().setUri(uri).setBody(body);
        for (List<String> some : parts(uids)) {
            List<PushResponse> results = gateway.withDeadlineAfter(Math.round(CALL_SECONDS * 1e3), TimeUnit.MILLISECONDS)
                    .pushMany(request.clearUids().addAllUids(some).build())
                    .getResultsList();
            for (int i = 0; i < results.size(); i++) {
                write(Outcome.of(some.get(i), results.get(i)));
            }
        }
    }

    /** Without a deadline of its own: the service config has one for the calls that only read. */
    private void online(List<String> uids) throws StatusException, InterruptedException {
        for (List<String> some : parts(uids)) {
            IsOnlineRequest request = IsOnlineRequest.newBuilder().addAllUids(some).build();
            for (OnlineState state : gateway.isOnline(request).getStatesList()) {
                write(new Online(state.getUid(), state.getOnline(), state.getConnections()));
            }
        }
    }

    /** These uids, or those on standard input, as many at a time as a call takes. */
    private static List<List<String>> parts(List<String> named) {
        List<String> uids = named.isEmpty() ? new Scanner(System.in, StandardCharsets.UTF_8).tokens().toList() : named;
        List<List<String>> parts = new ArrayList<>();
        for (int begin = 0; begin < uids.size(); begin += UIDS_MAX) {
            parts.add(uids.subList(begin, Math.min(begin + UIDS_MAX, uids.size())));
        }
        return parts;
    }

    private void watch(List<String> uids) throws StatusException, InterruptedException {
        new Presence(new Presence.Listener() {
            @Override
            public void changed(Presence.Change change) {
                write(change);
            }

            @Override
            public void live() {
                write(Map.of("live", true));
            }
        }).follow(channel, uids);
    }

    /**
     * Pushes what comes on standard input. Results are read while pushes are written: the gateway stops reading where
     * too many wait for a result.
     */
    private void stream() throws StatusException, InterruptedException {
        BlockingClientCall<PushStreamRequest, PushStreamResponse> stream = gateway.pushStream();
        Map<Long, String> waiting = new ConcurrentSkipListMap<>();
        // On a thread of its own, which blocks, and keeps nobody from ending.
        CompletableFuture<Void> writing = CompletableFuture.runAsync(() -> writePushes(stream, waiting), task -> {
            Thread writer = new Thread(task, "pushes");
            writer.setDaemon(true);
            writer.start();
        });
        try {
            PushStreamResponse response;
            while ((response = stream.read()) != null) {
                for (PushResponse result : response.getResultsList()) {
                    write(Outcome.of(waiting.remove(result.getId()), result));
                }
            }
        } catch (StatusException broken) {
            // These may have been sent, or not. Whether they go out again is for the caller to say.
            PushResponse unknown = PushResponse.newBuilder().setStatus(PushStatus.PUSH_STATUS_UNKNOWN).build();
            waiting.values().forEach(uid -> write(Outcome.of(uid, unknown)));
            throw broken;
        }
        try {
            writing.join();
        } catch (CompletionException failed) {
            throw failed.getCause() instanceof BadInput wrong ? wrong : failed;
        }
    }

    /** Reads a push from each line, numbers them, and writes what has come together as one message. */
    private static void writePushes(
            BlockingClientCall<PushStreamRequest, PushStreamResponse> stream, Map<Long, String> waiting) {
        long id = 0;
        try (BufferedReader input = input()) {
            for (String line; (line = input.readLine()) != null; ) {
                PushStreamRequest.Builder batch = PushStreamRequest.newBuilder();
                int size = 0;
                try {
                    while (true) {
                        PushRequest push = read(line, ++id);
                        batch.addPushes(push);
                        size += push.getSerializedSize();
                        if (batch.getPushesCount() == BATCH_PUSHES || size >= BATCH_BYTES || !input.ready()) {
                            break;
                        }
                        line = input.readLine();
                    }
                } finally {
                    // Where a line is wrong, what came before it goes out all the same.
                    batch.getPushesList().forEach(push -> waiting.put(push.getId(), push.getUid()));
                    stream.write(batch.build());
                }
            }
        } catch (IOException unreadable) {
            throw new BadInput(unreadable.getMessage());
        } catch (StatusException | InterruptedException broken) {
            // Whoever reads the results is told why.
        } finally {
            stream.halfClose();
        }
    }

    private static PushRequest read(String line, long id) {
        try {
            return GSON.fromJson(line, Input.class).request().setId(id).build();
        } catch (JsonParseException | NullPointerException wrong) {
            throw new BadInput("push " + id + ": not a push: " + line);
        }
    }

    /** Standard input has something that isn't a push. */
    private static final class BadInput extends RuntimeException {
        private static final long serialVersionUID = 1;

        BadInput(String message) {
            super(message);
        }
    }

    private static BufferedReader input() {
        return new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    }

    private static void write(Object value) {
        OUT.println(GSON.toJson(value));
    }
}
