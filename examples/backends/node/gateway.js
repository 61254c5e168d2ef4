// The way to the gateway that the environment names.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const proto = fileURLToPath(new URL("../../../proto", import.meta.url));
const definition = loadSync("plex/v1/gateway.proto", {
  includeDirs: [proto],
  longs: String, // a number can't hold 64 bits
  enums: String,
  defaults: true,
});
const plex = grpc.loadPackageDefinition(definition).plex.v1;

const options = {
  // Retries the calls that only read, and gives them a deadline. Whether a push may go out twice is for its caller to
  // say.
  "grpc.service_config": readFileSync(new URL("service_config.json", import.meta.url), "utf8"),
  // A peer that is gone without a word is noticed by streams that only listen, too.
  "grpc.keepalive_time_ms": 30_000,
  "grpc.keepalive_timeout_ms": 10_000,
  // After a restart of the gateway nobody should wait for two minutes, which is gRPC's own limit.
  "grpc.max_reconnect_backoff_ms": 10_000,
};

/** A client that shows the secret with each call. It connects at the first one. */
export function connect({ PLEX_CONTROL, PLEX_SECRET, PLEX_CA } = process.env) {
  if (!PLEX_SECRET) throw new Error("PLEX_SECRET isn't set");
  const credentials = PLEX_CA ? grpc.credentials.createSsl(readFileSync(PLEX_CA)) : grpc.credentials.createInsecure();
  const bearer = (options, nextCall) =>
    new grpc.InterceptingCall(nextCall(options), {
      start(metadata, listener, next) {
        metadata.set("authorization", `Bearer ${PLEX_SECRET}`);
        next(metadata, listener);
      },
    });
  return new plex.Gateway(PLEX_CONTROL || "127.0.0.1:9580", credentials, { ...options, interceptors: [bearer] });
}

/** One call with one answer, as a promise. */
export function call(gateway, method, request, options = {}) {
  return new Promise((resolve, reject) => {
    gateway[method](request, options, (error, response) => (error ? reject(error) : resolve(response)));
  });
}
