"""A backend of plex: pushes to devices, and follows who is online. ../README.md describes its command line."""

import argparse
import itertools
import json
import logging
import math
import os
import queue
import sys
import threading
from collections.abc import Iterator

import grpc

from gateway import Gateway
from plex.v1 import gateway_pb2 as plex
from presence import Live, Presence

# How long a push may take, aside from the device's own answer.
CALL_TIMEOUT = 5.0
UIDS_MAX = 10_000
# What goes into one message of a stream: the gateway takes 1,000 pushes and 4 MiB.
BATCH_PUSHES = 1_000
BATCH_BYTES = 1 << 20


class BadInput(Exception):
    """A line of standard input isn't a push."""


def push(gateway: Gateway, args: argparse.Namespace) -> None:
    request = push_request(args.uid, args.uri, args.body, args.ack)
    timeout = CALL_TIMEOUT + (args.ack or 0)
    write_outcome(args.uid, gateway.stub.Push(request, metadata=gateway.metadata, timeout=timeout))


def many(gateway: Gateway, args: argparse.Namespace) -> None:
    for uids in parts(args.uid):
        request = plex.PushManyRequest(uids=uids, uri=args.uri, body=args.body)
        response = gateway.stub.PushMany(request, metadata=gateway.metadata, timeout=CALL_TIMEOUT)
        for uid, result in zip(uids, response.results, strict=True):
            write_outcome(uid, result)


def online(gateway: Gateway, args: argparse.Namespace) -> None:
    """Without a deadline of its own: the service config has one for the calls that only read."""
    for uids in parts(args.uid):
        request = plex.IsOnlineRequest(uids=uids)
        for state in gateway.stub.IsOnline(request, metadata=gateway.metadata).states:
            write({"uid": state.uid, "online": state.online, "connections": state.connections})


def parts(uids: list[str]) -> Iterator[list[str]]:
    """These uids, or those on standard input, as many at a time as a call takes."""
    uids = uids or sys.stdin.read().split()
    for begin in range(0, len(uids), UIDS_MAX):
        yield uids[begin : begin + UIDS_MAX]


def watch(gateway: Gateway, args: argparse.Namespace) -> None:
    for update in Presence().follow(gateway, args.uid):
        if isinstance(update, Live):
            write({"live": True})
        else:
            change = {"uid": update.uid, "online": update.online, "epoch": str(update.epoch)}
            write(change if update.reason is None else change | {"reason": update.reason})


def stream(gateway: Gateway, _: argparse.Namespace) -> None:
    """Pushes what comes on standard input.

    gRPC draws the batches in a thread of its own, so that results are read while pushes are written: the gateway stops
    reading where too many wait for a result.
    """
    pushes: queue.Queue[plex.PushRequest | BadInput | None] = queue.Queue(BATCH_PUSHES)
    threading.Thread(target=read_pushes, args=(pushes,), daemon=True).start()
    waiting: dict[int, str] = {}
    bad_input: list[BadInput] = []

    def requests() -> Iterator[plex.PushStreamRequest]:
        for batch in batches(pushes, bad_input):
            waiting.update((push.id, push.uid) for push in batch)
            yield plex.PushStreamRequest(pushes=batch)

    try:
        for response in gateway.stub.PushStream(requests(), metadata=gateway.metadata):
            for result in response.results:
                write_outcome(waiting.pop(result.id), result)
    except grpc.RpcError:
        # These may have been sent, or not. Whether they go out again is for the caller to say.
        for uid in list(waiting.values()):
            write_outcome(uid, plex.PushResponse(status=plex.PUSH_STATUS_UNKNOWN))
        raise
    if bad_input:
        raise bad_input[0]


def read_pushes(pushes: queue.Queue) -> None:
    """Reads a push from each line, and numbers them; then the end, or what is wrong with a line."""
    try:
        for number, line in zip(itertools.count(1), sys.stdin):
            fields = json.loads(line)
            push = push_request(
                fields.get("uid"), fields.get("uri"), fields.get("body"), fields.get("ack_seconds")
            )
            push.id = number
            pushes.put(push)
    except (ValueError, TypeError, AttributeError) as error:
        pushes.put(BadInput(f"push {number}: {error}"))
    else:
        pushes.put(None)


def batches(pushes: queue.Queue, bad_input: list[BadInput]) -> Iterator[list[plex.PushRequest]]:
    """Waits for a push, and takes what has come meanwhile, as far as it goes into one message."""
    while True:
        batch: list[plex.PushRequest] = []
        size = 0
        while len(batch) < BATCH_PUSHES and size < BATCH_BYTES:
            try:
                push = pushes.get(block=not batch)
            except queue.Empty:
                break
            if not isinstance(push, plex.PushRequest):
                if batch:
                    yield batch
                if push is not None:
                    bad_input.append(push)
                return
            batch.append(push)
            size += push.ByteSize()
        yield batch


def push_request(uid: str | None, uri: str | None, body: str | None, ack_seconds: float | None) -> plex.PushRequest:
    request = plex.PushRequest(uid=uid, uri=uri, body=body)
    if ack_seconds is not None:
        request.ack_timeout.FromNanoseconds(round(ack_seconds * 1e9))
    return request


def write_outcome(uid: str, response: plex.PushResponse) -> None:
    try:
        status = plex.PushStatus.Name(response.status)
    except ValueError:
        status = "PUSH_STATUS_UNKNOWN"  # one that came after this program
    write(
        {
            "uid": uid,
            "status": status.removeprefix("PUSH_STATUS_"),
            "seq": str(response.seq),
            "connections": response.connections,
            "reply": response.reply,
            "error": response.error,
        }
    )


def write(value: dict[str, object]) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


def seconds(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError
    return number


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="backend.py")
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("push", help="push to one uid")
    command.add_argument("--ack", type=seconds, metavar="SECONDS", help="wait for the device's answer")
    command.add_argument("uid")
    command.add_argument("uri")
    command.add_argument("body")
    command.set_defaults(run=push)

    command = commands.add_parser("stream", help="push what comes on standard input")
    command.set_defaults(run=stream)

    command = commands.add_parser("many", help="push to many: these, or those on standard input")
    command.add_argument("uri")
    command.add_argument("body")
    command.add_argument("uid", nargs="*")
    command.set_defaults(run=many)

    command = commands.add_parser("online", help="ask who is online, of these or of those on standard input")
    command.add_argument("uid", nargs="*")
    command.set_defaults(run=online)

    command = commands.add_parser("watch", help="follow who is online, of these or of all")
    command.add_argument("uid", nargs="*")
    command.set_defaults(run=watch)
    return parser.parse_args()


def main() -> None:
    logging.basicConfig(format="%(message)s")
    args = arguments()
    if not os.environ.get("PLEX_SECRET"):
        sys.exit("PLEX_SECRET isn't set")
    try:
        with Gateway() as gateway:
            args.run(gateway, args)
    except KeyboardInterrupt:
        sys.exit(130)
    except (BadInput, OSError) as error:
        sys.exit(str(error))
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")


if __name__ == "__main__":
    main()
