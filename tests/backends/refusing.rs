//! A server that refuses.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::{net::TcpListener, task::JoinHandle};

/// A server that leaves Push without an answer, PushStream once something was pushed, and refuses all else for now.
pub struct Refusing {
    pub address: SocketAddr,
    /// The methods called, in order.
    pub calls: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Refusing {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let noted = calls.clone();
        let router = axum::Router::new().fallback(move |uri: axum::http::Uri, body: axum::body::Body| {
            let method = uri.path().rsplit('/').next().unwrap_or_default().to_owned();
            noted.lock().unwrap().push(method.clone());
            async move {
                match &*method {
                    "Push" => tokio::time::sleep(Duration::from_secs(60)).await,
                    "PushStream" => drop(body.into_data_stream().next().await),
                    _ => {}
                }
                tonic::Status::unavailable("not now").into_http::<axum::body::Body>()
            }
        });
        let server = tonic::transport::Server::builder().add_routes(router.into());
        let task = tokio::spawn(async move {
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            server.serve_with_incoming(incoming).await.expect("it serves");
        });
        Self { address, calls, task }
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        self.task.abort();
    }
}
