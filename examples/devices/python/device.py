#!/usr/bin/env python3
"""A device of a plex gateway: the device protocol, version 2, with Python's standard library alone (3.9 or newer).

Each line on stdout is a JSON object that tells what happens:

    {"event": "connected", "address": "127.0.0.1:9578", "node": "a"}
    {"event": "push", "seq": 1795480045325479, "uri": "/greeting", "body": "hello"}
    {"event": "error", "reason": "malformed", "detail": "..."}            the gateway didn't understand the last frame
    {"event": "kick", "reason": "draining", "reconnect": true, "after_ms": 1200}
    {"event": "closed", "detail": "..."}                                  no connection, or none any more
    {"event": "waiting", "ms": 1200}                                      until the next try

Exit codes: 1 told not to come back, 2 bad usage, 3 the credential is refused.
"""

import argparse
import asyncio
import http.client
import json
import os
import random
import ssl
import sys
import time
import urllib.request

CONNECT_SECONDS = 10
LOGIN_SECONDS = 40  # a gateway may hold its answer back for 30
WAIT_FIRST, WAIT_LONGEST = 1, 60  # seconds until another try
FRAME_BYTES_MAX = 16 << 20  # no gateway can be set to more


class ProtocolError(ValueError):
    """What came is not of the protocol."""


class Unavailable(Exception):
    """The gateway can't check credentials at this time."""


class Expelled(Exception):
    """The gateway doesn't want this device back."""


class Refused(Exception):
    """The credential isn't good, and won't be at another try."""


class Connection:
    """Frames in both directions: a length of four bytes, then that many of JSON."""

    def __init__(self, reader, writer, byte_order):
        self.reader, self.writer, self.byte_order = reader, writer, byte_order
        self.silence = LOGIN_SECONDS

    async def receive(self):
        """The next message. A gateway that is silent for too long is gone, whatever TCP says."""
        return await asyncio.wait_for(self._receive(), self.silence)

    async def _receive(self):
        length = int.from_bytes(await self.reader.readexactly(4), self.byte_order)
        if length > FRAME_BYTES_MAX:
            raise ProtocolError(f"a frame of {length} bytes (is the byte order right?)")
        # Grows as the bytes come: a length alone makes nobody allocate.
        return read_object((await self.reader.readexactly(length)).decode())

    def send(self, **fields):
        message = encode(fields)
        self.writer.write(len(message).to_bytes(4, self.byte_order) + message)

    async def flush(self):
        await asyncio.wait_for(self.writer.drain(), self.silence)


def encode(message):
    # Without "ensure_ascii" every letter that isn't ASCII would take 6 or 12 bytes of the frame instead of 2 to 4.
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


def read_object(text):
    """A JSON object; an empty one for an empty text, as of a body that was left out, and for `null`."""
    try:
        value = json.loads(text or "null")
    except RecursionError as error:
        raise ProtocolError("JSON that is too deep") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ProtocolError("not a JSON object")
    return value


def field(message, name, default):
    """A field of the default's type; the default where it is missing, as the gateway leaves out what is empty."""
    value = message.get(name)
    if value is None:
        return default
    if type(value) is not type(default):  # and no isinstance: a bool is an int
        raise ProtocolError(f"{name} is of the wrong type")
    if isinstance(value, str):
        value.encode()  # a lone surrogate is no text; it is a ValueError, too
    elif not -1 << 63 <= value < 1 << 63:
        raise ProtocolError(f"{name} has more than 64 bits")
    return value


def show(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


def show_error(body):
    error = read_object(body)
    show("error", reason=field(error, "reason", ""), detail=field(error, "detail", ""))


async def find(args):
    """The host and port to connect to. A gateway behind a URL is asked each time: the answer changes."""
    if "://" not in args.gateway:
        return host_and_port(args.gateway)
    url = args.gateway.rstrip("/") + "/plex/v1/host" + ("?transport=tls" if args.tls else "")
    return host_and_port(field(read_object(await asyncio.to_thread(fetch, url, args.tls)), "host", ""))


def fetch(url, tls):
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_SECONDS, context=tls) as answer:
            return answer.read(64 << 10).decode()
    except http.client.HTTPException as error:
        raise ProtocolError(f"no HTTP: {error!r}") from error


def host_and_port(address):
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise ProtocolError(f"no HOST:PORT: {address!r}")
    return host.strip("[]"), int(port)


def credential(args):
    """What to authenticate with. A file is read at each login, so that a new token counts."""
    if not args.credential.startswith("@"):
        return args.credential
    with open(args.credential[1:], encoding="utf-8") as file:
        return file.read().removesuffix("\n")


async def login(connection, args):
    """Authenticates; gives the gateway's settings, empty from one that knows only version 1."""
    connection.send(uri="/auth/server", body=credential(args), v=2)
    await connection.flush()
    while True:
        message = await connection.receive()
        uri, body = field(message, "uri", ""), field(message, "body", "")
        if uri == "/auth/success":
            return read_object(body)
        if uri == "/auth/failed":
            if field(read_object(body), "reason", "") == "unavailable":
                raise Unavailable("the gateway can't check credentials at this time")
            raise Refused("the credential is refused")
        if uri == "/plex/error":
            show_error(body)


async def beat(connection, seconds):
    """Shows the gateway that this device lives; its answers show the same of the gateway."""
    while True:
        await asyncio.sleep(seconds)
        # Not flushed, as two tasks must not do that at once. If it can't go out, no answer comes, and that ends it.
        connection.send(uri="/heartbeat")


def answer(connection, seq, body, echo, frame_bytes_max):
    ack = {"seq": seq, "uri": "/plex/ack", "body": body if echo else ""}
    if len(encode(ack)) > frame_bytes_max:  # a longer one would end the connection
        ack = {"seq": seq, "uri": "/plex/nack", "body": "the reply is too long"}
    connection.send(**ack)


async def live(connection, args, address):
    """One connection, from its login to a kick. Returns the seconds that it told to wait; None: none."""
    settings = await login(connection, args)
    show("connected", address=address, node=field(settings, "node", ""))
    heartbeat = field(settings, "heartbeat_seconds", 60)
    timeout = field(settings, "heartbeat_timeout_seconds", 120)
    frame_bytes_max = field(settings, "max_frame_bytes", 64 << 10)
    connection.silence = max(1, timeout)
    # Both are told in whole seconds, rounded up, so a heartbeat goes out twice in the time-out at least.
    beating = asyncio.create_task(beat(connection, max(0.1, min(heartbeat, timeout / 2))))
    try:
        while True:
            message = await connection.receive()
            uri, body = field(message, "uri", ""), field(message, "body", "")
            if uri == "/plex/kick":
                kick = read_object(body)
                reason, after_ms = field(kick, "reason", ""), field(kick, "after_ms", 0)
                reconnect = field(kick, "reconnect", True)
                show("kick", reason=reason, reconnect=reconnect, after_ms=after_ms)
                if not reconnect:
                    raise Expelled(f"told not to come back: {reason}")
                return None if kick.get("after_ms") is None else max(0, after_ms) / 1000
            if uri == "/plex/error":
                show_error(body)
            elif uri and uri != "/heartbeat" and not uri.startswith(("/auth/", "/plex/")):
                seq = field(message, "seq", 0)
                # A device with something to do does it here: the ack says that it is done.
                show("push", seq=seq, uri=uri, body=body)
                answer(connection, seq, body, args.echo, frame_bytes_max)
                await connection.flush()
    finally:
        beating.cancel()


async def connect(args):
    host, port = await find(args)
    opening = asyncio.open_connection(host, port, ssl=args.tls, server_hostname=host if args.tls else None)
    reader, writer = await asyncio.wait_for(opening, CONNECT_SECONDS)
    try:
        connection = Connection(reader, writer, "little" if args.little_endian else "big")
        return await live(connection, args, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    finally:
        writer.close()


async def run(args):
    failures = 0
    while True:
        begun, told = time.monotonic(), None
        try:
            told = await connect(args)
            detail = "kicked"
        except asyncio.IncompleteReadError:
            detail = "the gateway closed the connection"
        except asyncio.TimeoutError:
            detail = "the gateway is silent"
        except (OSError, ValueError, Unavailable) as error:
            detail = str(error)
        show("closed", detail=detail)
        # A connection that lasted was a good one. Not every one is: a gateway that takes a device and loses it at once
        # must not be hammered.
        if time.monotonic() - begun > WAIT_LONGEST:
            failures = 0
        if told is None:
            # Random, so that all who lost the same gateway don't come back as a herd.
            told = min(WAIT_FIRST * 2 ** min(failures, 10), WAIT_LONGEST) * random.uniform(0.5, 1)
            failures += 1
        show("waiting", ms=round(told * 1000))
        await asyncio.sleep(told)


def arguments():
    parser = argparse.ArgumentParser(description="A device of a plex gateway.")
    parser.add_argument("gateway", help="HOST:PORT, or the URL to ask for that: http://HOST:9579")
    parser.add_argument("credential", help="what to authenticate with; @FILE: what that file holds at each login")
    parser.add_argument("--echo", action="store_true", help="reply to each push with its own body")
    parser.add_argument("--little-endian", action="store_true", help="for a gateway with device.little_endian")
    parser.add_argument("--tls", action="store_true", help="TLS; the system's authorities vouch for the gateway")
    parser.add_argument("--ca", metavar="FILE", help="TLS; the certificates of FILE vouch for the gateway")
    args = parser.parse_args()
    try:
        args.tls = ssl.create_default_context(cafile=args.ca) if args.tls or args.ca else None
        if "://" not in args.gateway:
            host_and_port(args.gateway)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return args


def main():
    try:
        asyncio.run(run(arguments()))
    except Expelled as error:
        print(f"device: {error}", file=sys.stderr)
        return 1
    except Refused as error:
        print(f"device: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        os._exit(0)  # nobody reads stdout any more, and it can't be flushed


if __name__ == "__main__":
    sys.exit(main())
