"""The way to the gateway that the environment names."""

import os
from pathlib import Path

import grpc

from plex.v1 import gateway_pb2_grpc

OPTIONS = [
    # Retries the calls that only read, and gives them a deadline. Whether a push may go out twice is for its caller
    # to say.
    ("grpc.service_config", Path(__file__).with_name("service_config.json").read_text()),
    # A peer that is gone without a word is noticed by streams that only listen, too.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # After a restart of the gateway nobody should wait for two minutes, which is gRPC's own limit.
    ("grpc.max_reconnect_backoff_ms", 10_000),
]


class Gateway:
    """A channel, its stub, and the metadata that every call must carry. It connects at the first call."""

    def __init__(self) -> None:
        target = os.environ.get("PLEX_CONTROL") or "127.0.0.1:9580"
        self.metadata = [("authorization", f"Bearer {os.environ['PLEX_SECRET']}")]
        if ca := os.environ.get("PLEX_CA"):
            credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes())
            self._channel = grpc.secure_channel(target, credentials, OPTIONS)
        else:
            self._channel = grpc.insecure_channel(target, OPTIONS)
        self.stub = gateway_pb2_grpc.GatewayStub(self._channel)

    def __enter__(self) -> "Gateway":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
