//! The HTTP port: where a device should connect (`/plex/v1/host`), and health for load balancers (`/livez`,
//! `/readyz`). The metrics (`/metrics`) have an address of their own.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use serde::Deserialize;
use serde_json::json;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    hub::Hub,
    telemetry::{Live, Metrics},
};

/// How long a client may take over the head of a request, and stay idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections served at a time on one listener; more wait to be accepted.
const CONNECTIONS_MAX: usize = 1_000;

/// How long the last answers may take when the node stops.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The routes of the HTTP port.
pub(crate) fn routes(hub: Hub, ready: CancellationToken) -> Router {
    Router::new()
        .route("/plex/v1/host", get(host))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(Node { hub, ready })
}

/// The routes of the metrics port. `ack_waits_max` as `control.ack_waits`.
pub(crate) fn metrics_routes(hub: Hub, metrics: Metrics, ack_waits_max: usize) -> Router {
    let page = move || {
        let live = Live {
            connections: hub.connections(),
            uids: hub.cluster().uids(),
            ack_waits: ack_waits_max.saturating_sub(hub.ack_waits().available_permits()),
        };
        let text = metrics.render(live);
        async { ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text) }
    };
    Router::new().route("/metrics", get(page))
}

#[derive(Clone)]
struct Node {
    hub: Hub,
    /// Cancelled once all listeners are bound.
    ready: CancellationToken,
}

#[derive(Deserialize)]
struct HostQuery {
    #[serde(default)]
    transport: String,
}

async fn host(State(node): State<Node>, Query(HostQuery { transport }): Query<HostQuery>) -> Response {
    if !matches!(transport.as_str(), "" | "tcp" | "tls") {
        return error(StatusCode::BAD_REQUEST, "transport: empty, tcp or tls");
    }
    match node.hub.choose_host(&transport) {
        Some((host, _)) => Json(json!({ "host": host })).into_response(),
        None => error(StatusCode::SERVICE_UNAVAILABLE, "no node takes devices by this transport now"),
    }
}

fn error(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "error": text }))).into_response()
}

async fn readyz(State(node): State<Node>) -> Response {
    if node.hub.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response()
    } else if node.ready.is_cancelled() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response()
    }
}

/// Serves `routes` on this thread until `stop`; answers under way are finished.
pub(crate) async fn serve(listener: TcpListener, routes: Router, stop: CancellationToken) {
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_headers(64);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = GracefulShutdown::new();
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let stream = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::error!(%error, "accepting HTTP");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let service = TowerToHyperService::new(routes.clone());
        let connection = connections.watch(server.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // Broken by its peer: nobody's business.
            let _ = connection.await;
            drop(place);
        });
    }
    let _ = tokio::time::timeout(LAST_ANSWERS, connections.shutdown()).await;
}
