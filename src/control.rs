//! The control plane: what business backends call over gRPC.
//!
//! Each call decodes, asks the hub, encodes. Only here a gRPC status is known; an outcome of a push never is one.

mod beside;
mod call;
mod callers;
mod convert;
mod failures;
mod incoming;
mod presence;
mod push;
mod push_stream;
mod secret;
mod sessions;

use std::{sync::Arc, time::Duration};

use futures_util::stream::BoxStream;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, service::Routes};
use tonic_health::pb::health_server::{Health, HealthServer};

pub(crate) use self::secret::Secrets;
use self::{
    callers::Guarded,
    convert::Checks,
    failures::Failures,
    secret::{Caller, ClientNames},
};
use crate::{
    config::ControlConfig,
    hub::Hub,
    proto::{
        BroadcastRequest, BroadcastResponse, DisconnectRequest, DisconnectResponse, GetHostRequest, GetHostResponse,
        GetInfoRequest, GetInfoResponse, IsOnlineRequest, IsOnlineResponse, ListNodesRequest, ListNodesResponse,
        ListSessionsRequest, ListSessionsResponse, OnlineStatusRequest, OnlineStatusResponse, PushManyRequest,
        PushManyResponse, PushRequest, PushResponse, PushStreamRequest,
        gateway_server::{Gateway, GatewayServer},
    },
    telemetry::Metrics,
    tls::ServerTls,
};

/// Most events, results or sessions in one message of a stream.
const BATCH_MAX: usize = 1_000;

/// How often a connection without traffic is asked whether its peer is still there, and how long it may take: a
/// backend that has gone doesn't hold its streams for ever.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// Bytes that a caller may send ahead: of one stream, of one connection.
const WINDOW: (u32, u32) = (1 << 20, 4 << 20);

/// Calls of one connection that may be cancelled before they are looked at, where `control.max_streams` isn't more. Over
/// it the connection ends, with all its calls; the library's 20 are reached by a caller whose deadlines pass together.
const CANCELLED_MAX: usize = 1_000;

/// Most characters that the log shows of a text of a caller's choice.
const LOGGED_CHARS_MAX: usize = 256;

/// The service `plex.v1.Gateway`. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Control(Arc<Inner>);

struct Inner {
    hub: Hub,
    metrics: Metrics,
    checks: Checks,
    stream_window: usize,
    /// The end of the drain: streams end.
    stopping: CancellationToken,
}

impl Control {
    pub(crate) fn new(
        hub: Hub,
        metrics: Metrics,
        config: &ControlConfig,
        frame_bytes_max: u32,
        frame_bytes: convert::FrameBytes,
        stopping: CancellationToken,
    ) -> Self {
        let checks = Checks { frame_bytes_max, frame_bytes };
        Self(Arc::new(Inner { hub, metrics, checks, stream_window: config.stream_window as usize, stopping }))
    }
}

/// What stands before the service, one for all threads. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Door {
    secrets: Secrets,
    /// None: without TLS.
    tls: Option<ServerTls>,
    names: ClientNames,
    failures: Failures,
}

impl Door {
    pub(crate) fn new(secrets: Secrets, tls: Option<ServerTls>, config: &ControlConfig) -> Self {
        Self { secrets, tls, names: ClientNames::new(&config.client_names), failures: Failures::new() }
    }
}

/// Serves the control plane on this thread until `stop`; then waits for the calls under way.
pub(crate) async fn serve<H: Health>(
    listener: TcpListener,
    control: Control,
    door: Door,
    health: HealthServer<H>,
    config: ControlConfig,
    stop: CancellationToken,
) {
    let Door { secrets, tls, names, failures } = door;
    let metrics = control.0.metrics.clone();
    let beside = beside::routes(control.clone(), health);
    let gateway = Guarded::new(GatewayServer::new(control), secrets, metrics.clone(), failures);
    let routes = Routes::from(beside).add_service(gateway);
    let mut server = tonic::transport::Server::builder()
        .max_concurrent_streams(config.max_streams)
        .http2_max_pending_accept_reset_streams(Some(CANCELLED_MAX.max(config.max_streams as usize)))
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .initial_stream_window_size(WINDOW.0)
        .initial_connection_window_size(WINDOW.1);
    if let Some(age) = config.max_connection_age {
        server = server.max_connection_age(age);
    }
    let settings = incoming::Settings { tls, names, max_age: config.max_connection_age, metrics };
    let incoming = incoming::incoming(listener, settings);
    let served = server.add_routes(routes).serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "control plane");
    }
}

#[tonic::async_trait]
impl Gateway for Control {
    type PushStreamStream = push_stream::Results;
    type OnlineStatusStream = BoxStream<'static, Result<OnlineStatusResponse, Status>>;
    type ListSessionsStream = BoxStream<'static, Result<ListSessionsResponse, Status>>;

    async fn push(&self, request: Request<PushRequest>) -> Result<Response<PushResponse>, Status> {
        self.push_one(request).await
    }

    async fn push_stream(
        &self,
        request: Request<Streaming<PushStreamRequest>>,
    ) -> Result<Response<Self::PushStreamStream>, Status> {
        Ok(Response::new(push_stream::start(self.clone(), request)))
    }

    async fn push_many(&self, request: Request<PushManyRequest>) -> Result<Response<PushManyResponse>, Status> {
        self.push_to_many(request).await
    }

    async fn broadcast(&self, request: Request<BroadcastRequest>) -> Result<Response<BroadcastResponse>, Status> {
        self.push_to_all(request).await
    }

    async fn is_online(&self, request: Request<IsOnlineRequest>) -> Result<Response<IsOnlineResponse>, Status> {
        self.online_states(&request.into_inner()).map(Response::new)
    }

    async fn online_status(
        &self,
        request: Request<OnlineStatusRequest>,
    ) -> Result<Response<Self::OnlineStatusStream>, Status> {
        self.watch(request).map(Response::new)
    }

    async fn get_host(&self, request: Request<GetHostRequest>) -> Result<Response<GetHostResponse>, Status> {
        let transport = convert::transport(&request.get_ref().transport)?;
        match self.0.hub.choose_host(transport) {
            Some((host, node)) => Ok(Response::new(GetHostResponse { host, node: node.as_str().to_owned() })),
            None => Err(Status::unavailable("no node takes devices by this transport now")),
        }
    }

    async fn get_info(&self, _: Request<GetInfoRequest>) -> Result<Response<GetInfoResponse>, Status> {
        let Inner { hub, checks, .. } = &*self.0;
        let cluster = hub.cluster();
        Ok(Response::new(GetInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: cluster.name().as_str().to_owned(),
            features: if cluster.is_single() { Vec::new() } else { vec!["cluster".to_owned()] },
            frame_bytes_max: checks.frame_bytes_max,
            uids: cluster.uids(),
            connections: hub.connections() as u64,
            known_since: cluster.known_since().map(convert::timestamp),
        }))
    }

    async fn disconnect(&self, request: Request<DisconnectRequest>) -> Result<Response<DisconnectResponse>, Status> {
        let (caller, deadline) = (caller(&request), call::deadline(request.metadata()));
        let DisconnectRequest { uid, reason } = request.into_inner();
        convert::uid("uid", &uid)?;
        let reason = cut(&reason);
        let connections = self.0.hub.disconnect(&uid, reason, deadline).await;
        tracing::info!(caller = caller.map(tracing::field::display), uid, reason, connections, "Disconnect");
        Ok(Response::new(DisconnectResponse { connections }))
    }

    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<Self::ListSessionsStream>, Status> {
        self.sessions(request).map(Response::new)
    }

    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Result<Response<ListNodesResponse>, Status> {
        let nodes = self.0.hub.nodes().into_iter().map(convert::node).collect();
        Ok(Response::new(ListNodesResponse { nodes }))
    }
}

/// Who made a call, of those that the log has to tell.
fn caller<T>(request: &Request<T>) -> Option<Caller> {
    request.extensions().get().cloned()
}

/// The begin of a text for the log: it may have megabytes.
fn cut(text: &str) -> &str {
    text.char_indices().nth(LOGGED_CHARS_MAX).map_or(text, |(end, _)| &text[..end])
}

/// How a stream ends when the node, or the connection's time, is over.
fn over() -> Status {
    Status::unavailable("the gateway ends this stream: open it again")
}
