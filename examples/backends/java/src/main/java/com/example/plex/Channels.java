package com.example.plex;

import com.google.gson.Gson;
import com.google.gson.reflect.TypeToken;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/** The way to the gateway that the environment names. */
final class Channels {
    private static final Metadata.Key<String> AUTHORIZATION =
            Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

    private Channels() {}

    /** A channel that shows the secret with each call. It connects at the first one. */
    static ManagedChannel open(Map<String, String> environment) throws IOException {
        String control = environment.getOrDefault("PLEX_CONTROL", "");
        String target = control.isEmpty() ? "127.0.0.1:9580" : control;
        String ca = environment.getOrDefault("PLEX_CA", "");
        ChannelCredentials credentials = ca.isEmpty()
                ? InsecureChannelCredentials.create()
                : TlsChannelCredentials.newBuilder().trustManager(new File(ca)).build();
        Metadata secret = new Metadata();
        secret.put(AUTHORIZATION, "Bearer " + environment.get("PLEX_SECRET"));
        return Grpc.newChannelBuilder(target, credentials)
                .intercept(MetadataUtils.newAttachHeadersInterceptor(secret))
                .defaultServiceConfig(serviceConfig())
                // A peer that is gone without a word is noticed by streams that only listen, too.
                .keepAliveTime(30, TimeUnit.SECONDS)
                .keepAliveTimeout(10, TimeUnit.SECONDS)
                .build();
    }

    /**
     * Retries the calls that only read, and gives them a deadline. Whether a push may go out twice is for its caller to
     * say.
     */
    private static Map<String, ?> serviceConfig() throws IOException {
        try (var text = new InputStreamReader(
                Channels.class.getResourceAsStream("/service_config.json"), StandardCharsets.UTF_8)) {
            return new Gson().fromJson(text, new TypeToken<Map<String, Object>>() {});
        }
    }
}
