"""Who is online, by the events of OnlineStatus."""

import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc

from gateway import Gateway
from plex.v1 import gateway_pb2 as plex

# Waits before a stream is begun again: a random part of a limit that doubles from the first to the last.
FIRST_WAIT = 0.5
LAST_WAIT = 10.0

# What no other try would help against.
FINAL = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """The news of one uid."""

    uid: str
    online: bool
    epoch: int
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Live:
    """From here on all is known."""


class Presence:
    """The fold of the events."""

    def __init__(self) -> None:
        # The highest epoch seen is kept of who is offline, too, so that old news is seen to be old.
        self._known: dict[str, Change] = {}
        # Who was named in the snapshot that is being told; None while none is.
        self._told: set[str] | None = None
        # Where the next stream goes on; empty: with a snapshot.
        self._cursor = ""

    def online(self, uid: str) -> bool:
        """Whether the uid was online by the last news."""
        return uid in self._known and self._known[uid].online

    def follow(self, gateway: Gateway, uids: Sequence[str] = ()) -> Iterator[Change | Live]:
        """Gives each change, over broken connections and restarts of the gateway. Raises where no other try would help."""
        limit = FIRST_WAIT
        while True:
            if not self._cursor:
                self._told = set()
            request = plex.OnlineStatusRequest(uids=uids, resume_after=self._cursor)
            # Without a deadline: it is meant to last.
            stream = gateway.stub.OnlineStatus(request, metadata=gateway.metadata)
            try:
                for response in stream:
                    for event in response.events:
                        if event.kind == plex.ONLINE_STATUS_KIND_LIVE:
                            limit = FIRST_WAIT
                        yield from self._fold(event)
                    # None is given in the middle of a snapshot.
                    self._cursor = response.cursor or self._cursor
                end = "the stream has ended"
            except grpc.RpcError as error:
                if error.code() in FINAL:
                    raise
                end = f"{error.code().name}: {error.details()}"
            finally:
                stream.cancel()
            wait = random.uniform(0, limit)
            limit = min(2 * limit, LAST_WAIT)
            log.warning("presence: %s; again in %.1f s", end, wait)
            time.sleep(wait)

    def _fold(self, event: plex.OnlineStatusEvent) -> Iterator[Change | Live]:
        match event.kind:
            case plex.ONLINE_STATUS_KIND_RESET:
                self._told = set()
                self._cursor = ""
            case plex.ONLINE_STATUS_KIND_SNAPSHOT | plex.ONLINE_STATUS_KIND_CHANGE:
                if self._told is not None:
                    self._told.add(event.uid)
                known = self._known[event.uid].epoch if event.uid in self._known else 0
                snapshot = event.kind == plex.ONLINE_STATUS_KIND_SNAPSHOT
                if event.epoch > known or (snapshot and event.epoch == known):
                    yield from self._set(Change(event.uid, event.online, event.epoch, _reason(event)))
            case plex.ONLINE_STATUS_KIND_LIVE:
                # Until here the old stayed true. Who wasn't told by now has gone, at a moment that nobody knows.
                if self._told is not None:
                    gone = [known for uid, known in self._known.items() if known.online and uid not in self._told]
                    for known in gone:
                        yield from self._set(Change(known.uid, False, known.epoch))
                    self._told = None
                yield Live()

    def _set(self, change: Change) -> Iterator[Change]:
        """Takes over what is new, and tells it where it makes a difference."""
        was = self.online(change.uid)
        self._known[change.uid] = change
        if was != change.online:
            yield change


def _reason(event: plex.OnlineStatusEvent) -> str | None:
    """Why it went offline; None for who is online."""
    if event.online:
        return None
    try:
        return plex.OfflineReason.Name(event.reason).removeprefix("OFFLINE_REASON_")
    except ValueError:
        return "UNSPECIFIED"  # one that came after this program
