// A backend of plex: pushes to devices, and follows who is online. ../README.md describes its command line.
import { once } from "node:events";
import { text } from "node:stream/consumers";
import { parseArgs } from "node:util";
import { status } from "@grpc/grpc-js";
import { call, connect } from "./gateway.js";
import { Presence } from "./presence.js";

const USAGE = `usage: node backend.js push [--ack SECONDS] UID URI BODY
       node backend.js stream < PUSHES
       node backend.js many URI BODY UID...
       node backend.js many URI BODY < UIDS
       node backend.js online UID...
       node backend.js online < UIDS
       node backend.js watch [UID...]`;

// How long a push may take, in ms, aside from the device's own answer.
const CALL_TIMEOUT = 5_000;
const UIDS_MAX = 10_000;
// What the gateway takes in one message of a stream.
const BATCH_MAX = 1_000;

class UsageError extends Error {}

async function push(gateway, uid, uri, body, ackSeconds) {
  const deadline = Date.now() + CALL_TIMEOUT + (ackSeconds ?? 0) * 1_000;
  writeOutcome(uid, await call(gateway, "Push", pushRequest({ uid, uri, body, ack_seconds: ackSeconds }), { deadline }));
}

async function many(gateway, uri, body, uids) {
  for await (const some of parts(uids)) {
    const deadline = Date.now() + CALL_TIMEOUT;
    const { results } = await call(gateway, "PushMany", { uids: some, uri, body }, { deadline });
    results.forEach((result, index) => writeOutcome(some[index], result));
  }
}

/** Without a deadline of its own: the service config has one for the calls that only read. */
async function online(gateway, uids) {
  for await (const some of parts(uids)) {
    const { states } = await call(gateway, "IsOnline", { uids: some });
    for (const { uid, online, connections } of states) write({ uid, online, connections });
  }
}

/** These uids, or those on standard input, as many at a time as a call takes. */
async function* parts(uids) {
  if (uids.length === 0) uids = (await text(process.stdin)).split(/\s+/).filter(Boolean);
  for (let begin = 0; begin < uids.length; begin += UIDS_MAX) yield uids.slice(begin, begin + UIDS_MAX);
}

async function watch(gateway, uids) {
  for await (const update of new Presence().follow(gateway, uids)) {
    write(update.live ? update : { ...update, epoch: String(update.epoch) });
  }
}

/**
 * Pushes what comes on standard input. Results are read while pushes are written: the gateway stops reading where too
 * many wait for a result.
 */
async function stream(gateway) {
  const pushes = gateway.PushStream();
  const waiting = new Map(); // number → uid

  const writing = (async () => {
    try {
      for await (const batch of batches(process.stdin)) {
        for (const { id, uid } of batch) waiting.set(String(id), uid);
        if (!pushes.write({ pushes: batch })) await once(pushes, "drain");
      }
    } finally {
      pushes.end();
    }
  })();
  // Told at the end, when the results of what was good have come.
  writing.catch(() => {});

  try {
    for await (const { results } of pushes) {
      for (const result of results) {
        writeOutcome(waiting.get(result.id), result);
        waiting.delete(result.id);
      }
    }
  } catch (error) {
    // These may have been sent, or not. Whether they go out again is for the caller to say.
    for (const uid of waiting.values()) {
      writeOutcome(uid, { status: "PUSH_STATUS_UNKNOWN", seq: "0", connections: 0, reply: "", error: "" });
    }
    throw error;
  }
  await writing;
}

/** Reads a push from each line, and numbers them. What came together, at most 64 KiB, goes out together. */
async function* batches(source) {
  let id = 0;
  for await (const lines of linesOf(source)) {
    let batch = [];
    for (const line of lines) {
      id += 1;
      try {
        batch.push({ ...pushRequest(JSON.parse(line)), id });
      } catch (error) {
        // What came before it goes out all the same.
        yield batch;
        throw new Error(`push ${id}: ${error.message}`);
      }
      if (batch.length === BATCH_MAX) {
        yield batch;
        batch = [];
      }
    }
    if (batch.length > 0) yield batch;
  }
}

async function* linesOf(source) {
  let rest = "";
  for await (const chunk of source.setEncoding("utf8")) {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop();
    yield lines;
  }
  if (rest) yield [rest];
}

function pushRequest({ uid = "", uri = "", body = "", ack_seconds: seconds }) {
  if (seconds == null) return { uid, uri, body };
  const whole = Math.trunc(seconds);
  return { uid, uri, body, ackTimeout: { seconds: whole, nanos: Math.round((seconds - whole) * 1e9) } };
}

function writeOutcome(uid, { status, seq, connections, reply, error }) {
  // A status that came after this program is a bare number.
  const name = typeof status === "string" ? status.replace("PUSH_STATUS_", "") : "UNKNOWN";
  write({ uid, status: name, seq, connections, reply, error });
}

function write(value) {
  console.log(JSON.stringify(value));
}

async function run(gateway, [command, ...args]) {
  switch (command) {
    case "push": {
      const { values, positionals } = parse(args, { ack: { type: "string" } });
      const ack = values.ack === undefined ? undefined : Number(values.ack);
      if (positionals.length !== 3 || (ack !== undefined && !Number.isFinite(ack))) throw new UsageError();
      return push(gateway, ...positionals, ack);
    }
    case "stream":
      return stream(gateway);
    case "many": {
      const [uri, body, ...uids] = args;
      if (body === undefined) throw new UsageError();
      return many(gateway, uri, body, uids);
    }
    case "online":
      return online(gateway, args);
    case "watch":
      return watch(gateway, args);
    default:
      throw new UsageError();
  }
}

function parse(args, options) {
  try {
    return parseArgs({ args, options, allowPositionals: true });
  } catch {
    throw new UsageError();
  }
}

async function main(args) {
  const gateway = connect();
  try {
    await run(gateway, args);
  } finally {
    // Nothing else keeps the process alive; process.exit() would cut off what stdout hasn't taken yet.
    gateway.close();
    process.stdin.destroy();
  }
}

main(process.argv.slice(2)).catch((error) => {
  if (error instanceof UsageError) {
    console.error(USAGE);
    process.exitCode = 2;
  } else {
    console.error(error.details === undefined ? error.message : `${status[error.code]}: ${error.details}`);
    process.exitCode = 1;
  }
});
