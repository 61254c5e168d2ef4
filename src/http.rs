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
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::Standing,
    hub::Hub,
    model::Transport,
    telemetry::{Live, Metrics},
    tls::{self, HANDSHAKE_TIMEOUT, Handshakes, ServerTls},
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
            in_step: hub.cluster().standing() == Standing::InStep,
            unreadable: hub.cluster().unreadable(),
            unreadable_questions: hub.cluster().unreadable_questions(),
            server_errors: hub.cluster().server_errors(),
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
    let transport = match transport.as_str() {
        "" | "tcp" => Transport::Tcp,
        "tls" => Transport::Tls,
        _ => return error(StatusCode::BAD_REQUEST, "transport: empty, tcp or tls"),
    };
    match node.hub.choose_host(transport) {
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
    } else if !node.hub.cluster().was_in_step() {
        (StatusCode::SERVICE_UNAVAILABLE, "joining\n").into_response()
    } else if node.ready.is_cancelled() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response()
    }
}

/// Serves `routes` on this thread until `stop`; answers under way are finished.
pub(crate) async fn serve(listener: TcpListener, tls: Option<ServerTls>, routes: Router, stop: CancellationToken) {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_headers(64);
    let serving = Serving { http, routes, connections: GracefulShutdown::new() };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accepted = async {
        match tls {
            None => serve_plain(&listener, &serving, &places).await,
            Some(tls) => serve_tls(&listener, &tls, &serving, &places).await,
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = accepted => {}
    }
    let _ = tokio::time::timeout(LAST_ANSWERS, serving.connections.shutdown()).await;
}

async fn serve_plain(listener: &TcpListener, serving: &Serving, places: &Arc<Semaphore>) {
    loop {
        let Ok(place) = Arc::clone(places).acquire_owned().await else { return };
        serving.spawn(accept(listener).await, place);
    }
}

/// A handshake takes no place: only who has shaken hands waits for one.
async fn serve_tls(listener: &TcpListener, tls: &ServerTls, serving: &Serving, places: &Arc<Semaphore>) {
    let mut handshakes: Handshakes<(TlsStream<TcpStream>, OwnedSemaphorePermit)> = Handshakes::default();
    loop {
        tokio::select! {
            stream = accept(listener) => {
                let (tls, places) = (tls.clone(), Arc::clone(places));
                handshakes.begin(async move {
                    let served = async {
                        let stream = tls::accept(&tls, stream).await.ok()?;
                        Some((stream, places.acquire_owned().await.ok()?))
                    };
                    // The wait for a place included.
                    tokio::time::timeout(HANDSHAKE_TIMEOUT, served).await.ok().flatten()
                });
            }
            (stream, place) = handshakes.next() => serving.spawn(stream, place),
        }
    }
}

/// The next connection.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::error!(%error, "accepting HTTP");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// How connections are served.
struct Serving {
    http: hyper::server::conn::http1::Builder,
    routes: Router,
    connections: GracefulShutdown,
}

impl Serving {
    fn spawn(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, place: OwnedSemaphorePermit) {
        let service = TowerToHyperService::new(self.routes.clone());
        let connection = self.connections.watch(self.http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // Broken by its peer: nobody's business.
            let _ = connection.await;
            drop(place);
        });
    }
}
