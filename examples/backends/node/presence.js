// Who is online, by the events of OnlineStatus.
import { setTimeout as sleep } from "node:timers/promises";
import { status } from "@grpc/grpc-js";

// Waits before a stream is begun again, in ms: a random part of a limit that doubles from the first to the last.
const FIRST_WAIT = 500;
const LAST_WAIT = 10_000;

// What no other try would help against.
const FINAL = [status.UNAUTHENTICATED, status.PERMISSION_DENIED, status.INVALID_ARGUMENT, status.UNIMPLEMENTED];

export class Presence {
  /** uid → { online, epoch }. The highest epoch seen is kept of who is offline, too: old news is seen to be old. */
  #known = new Map();
  /** Who was named in the snapshot that is being told; null while none is. */
  #told = null;
  /** Where the next stream goes on; empty: with a snapshot. */
  #cursor = "";

  /** Whether the uid was online by the last news. */
  online(uid) {
    return this.#known.get(uid)?.online ?? false;
  }

  /**
   * Gives each change as { uid, online, epoch, reason }, and { live: true } whenever all is known, over broken
   * connections and restarts of the gateway. Throws where no other try would help.
   */
  async *follow(gateway, uids = []) {
    let limit = FIRST_WAIT;
    for (;;) {
      if (!this.#cursor) this.#told = new Set();
      // Without a deadline: it is meant to last.
      const stream = gateway.OnlineStatus({ uids, resumeAfter: this.#cursor });
      // An error that comes when nobody iterates any more would end the process.
      stream.on("error", () => {});
      let end = "the stream has ended";
      try {
        for await (const { events, cursor } of stream) {
          for (const event of events) {
            if (event.kind === "ONLINE_STATUS_KIND_LIVE") limit = FIRST_WAIT;
            yield* this.#fold(event);
          }
          // None is given in the middle of a snapshot.
          if (cursor) this.#cursor = cursor;
        }
      } catch (error) {
        if (error.code === undefined || FINAL.includes(error.code)) throw error;
        end = error.message;
      } finally {
        stream.cancel();
      }
      const wait = Math.random() * limit;
      limit = Math.min(2 * limit, LAST_WAIT);
      console.error(`presence: ${end}; again in ${wait.toFixed()} ms`);
      await sleep(wait);
    }
  }

  *#fold({ kind, uid, online, epoch, reason }) {
    switch (kind) {
      case "ONLINE_STATUS_KIND_RESET":
        this.#told = new Set();
        this.#cursor = "";
        break;
      case "ONLINE_STATUS_KIND_SNAPSHOT":
      case "ONLINE_STATUS_KIND_CHANGE": {
        this.#told?.add(uid);
        const known = this.#known.get(uid)?.epoch ?? 0n;
        const told = BigInt(epoch);
        if (told > known || (told === known && kind === "ONLINE_STATUS_KIND_SNAPSHOT")) {
          yield* this.#set(uid, online, told, online ? undefined : reasonName(reason));
        }
        break;
      }
      case "ONLINE_STATUS_KIND_LIVE":
        // Until here the old stayed true. Who wasn't told by now has gone, at a moment that nobody knows.
        if (this.#told) {
          for (const [uid, { online, epoch }] of this.#known) {
            if (online && !this.#told.has(uid)) yield* this.#set(uid, false, epoch);
          }
          this.#told = null;
        }
        yield { live: true };
    }
  }

  /** Takes over what is new, and tells it where it makes a difference. */
  *#set(uid, online, epoch, reason) {
    const was = this.online(uid);
    this.#known.set(uid, { online, epoch });
    if (was !== online) yield { uid, online, epoch, reason };
  }
}

/** A reason that came after this program is a bare number. */
function reasonName(reason) {
  return typeof reason === "string" ? reason.replace("OFFLINE_REASON_", "") : "UNSPECIFIED";
}
