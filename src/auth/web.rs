//! Connections to the servers that are asked: HTTP/1, kept and bounded.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode, Uri,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT},
    rt::{Read, ReadBufCursor, Write},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection, HttpConnector},
    },
    rt::{TokioExecutor, TokioTimer},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

use crate::{
    config::{EndpointUrl, Secret},
    files::{self, FileError},
    tls,
};

/// The largest answer, in bytes: a uid and a time, or a hundred keys.
pub(super) const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How long an unused connection is kept: less than servers do (5 s at the least), so that none is used in the moment
/// in which its server closes it.
const IDLE: Duration = Duration::from_secs(4);

/// How long bytes may be under way unacknowledged, or a peer be silent, until its connection counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(20);

/// What the gateway calls itself.
pub(super) const AGENT: &str = concat!("plex/", env!("CARGO_PKG_VERSION"));

/// One URL of a server, and the connections to it. To be used inside the runtime that shall own them.
pub(super) struct Web {
    url: EndpointUrl,
    uri: Uri,
    timeout: Duration,
    places: Arc<Semaphore>,
    ca: Option<PathBuf>,
    secret: Option<SecretFile>,
    client: RwLock<Client<Bounded, Full<Bytes>>>,
}

/// What a server answered, of at most [`ANSWER_BYTES_MAX`].
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Web {
    /// Reads `ca`, or the system's certificates where the URL needs some. At most `connections` at a time.
    pub(super) fn new(
        url: &EndpointUrl,
        ca: Option<PathBuf>,
        secret: Option<SecretFile>,
        connections: usize,
        timeout: Duration,
    ) -> Result<Self, FileError> {
        let places = Arc::new(Semaphore::new(connections));
        let client = RwLock::new(client(url, ca.as_ref(), &places, timeout)?);
        Ok(Self { url: url.clone(), uri: uri(url), timeout, places, ca, secret, client })
    }

    pub(super) fn url(&self) -> &EndpointUrl {
        &self.url
    }

    /// Reads `auth.ca` again, for new connections; a bad one leaves all as it was. Logs either.
    pub(super) fn reload_ca(&self) {
        match client(&self.url, self.ca.as_ref(), &self.places, self.timeout) {
            Ok(client) => {
                *self.client.write().unwrap_or_else(PoisonError::into_inner) = client;
                tracing::info!("auth.ca read again");
            }
            Err(error) => tracing::error!(%error, "auth.ca: the certificates before go on"),
        }
    }

    /// The body of the URL, where it answers 200.
    pub(super) async fn get(&self) -> Result<Vec<u8>, String> {
        let request = self.request(Method::GET, Full::default());
        let Answer { status, body } = self.send(request).await?;
        if status == StatusCode::OK { Ok(body.into()) } else { Err(format!("it answers {}", status.as_u16())) }
    }

    /// Posts JSON.
    pub(super) async fn post(&self, json: Vec<u8>) -> Result<Answer, String> {
        let mut request = self.request(Method::POST, Full::new(json.into()));
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.send(request).await
    }

    fn request(&self, method: Method, body: Full<Bytes>) -> Request<Full<Bytes>> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(secret) = &self.secret {
            headers.insert(AUTHORIZATION, secret.bearer());
        }
        request
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        let response = client.request(request).await.map_err(|error| reasons(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| format!("its answer can't be read: {error}"))?.to_bytes();
        Ok(Answer { status, body })
    }
}

/// An error with what caused it.
pub(super) fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

/// The URL, with a path.
fn uri(url: &EndpointUrl) -> Uri {
    let scheme = if url.is_https() { "https" } else { "http" };
    let path = if url.path().is_empty() { "/" } else { url.path() };
    let uri = Uri::builder().scheme(scheme).authority(url.host().to_string()).path_and_query(path).build();
    uri.expect("a URL of the configuration has been checked")
}

fn client(
    url: &EndpointUrl,
    ca: Option<&PathBuf>,
    places: &Arc<Semaphore>,
    timeout: Duration,
) -> Result<Client<Bounded, Full<Bytes>>, FileError> {
    let connector = Bounded { inner: connector(url, ca, timeout, false)?, places: Arc::clone(places), timeout };
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .http1_max_buf_size(ANSWER_BYTES_MAX)
        .build(connector))
}

/// Connects to the host of `url`, by TLS where it is `https`.
pub(super) fn connector(
    url: &EndpointUrl,
    ca: Option<&PathBuf>,
    timeout: Duration,
    http2: bool,
) -> Result<HttpsConnector<HttpConnector>, FileError> {
    let tls = if url.is_https() { tls::client_config(ca.map(PathBuf::as_path))? } else { tls::trusting_nobody() };
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(timeout));
    tcp.set_keepalive(Some(LOST_AFTER));
    tcp.set_tcp_user_timeout(Some(LOST_AFTER));
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls);
    let builder = if url.is_https() { builder.https_only() } else { builder.https_or_http() };
    Ok(if http2 { builder.enable_http2().wrap_connector(tcp) } else { builder.enable_http1().wrap_connector(tcp) })
}

/// The content of `auth.secret_file`, as it last was.
#[derive(Clone)]
pub(super) struct SecretFile(Arc<(PathBuf, RwLock<HeaderValue>)>);

impl SecretFile {
    pub(super) fn read(path: PathBuf) -> Result<Self, FileError> {
        let header = RwLock::new(Self::load(&path)?);
        Ok(Self(Arc::new((path, header))))
    }

    fn load(path: &Path) -> Result<HeaderValue, FileError> {
        let bytes = files::read(path)?;
        let text = std::str::from_utf8(bytes.strip_suffix(b"\n").unwrap_or(&bytes)).unwrap_or_default();
        let secret = Secret::new(text).map_err(|error| FileError::new(path, error))?;
        let mut header = HeaderValue::try_from(format!("Bearer {}", secret.expose()))
            .map_err(|_| FileError::new(path, "can't travel in a header"))?;
        header.set_sensitive(true);
        Ok(header)
    }

    /// Reads it again; a bad one leaves the secret as it was. Logs either.
    pub(super) fn reload(&self) {
        let (path, header) = &*self.0;
        match Self::load(path) {
            Ok(new) => {
                *header.write().unwrap_or_else(PoisonError::into_inner) = new;
                tracing::info!(file = %path.display(), "auth.secret_file read again");
            }
            Err(error) => tracing::error!(%error, "auth.secret_file: the secret before goes on"),
        }
    }

    /// `Bearer SECRET`.
    pub(super) fn bearer(&self) -> HeaderValue {
        self.0.1.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Opens no more connections at a time than there are places. A call that is given up closes its connection, and only
/// then is there room for another.
#[derive(Clone)]
struct Bounded {
    inner: HttpsConnector<HttpConnector>,
    places: Arc<Semaphore>,
    /// For a place, TCP and TLS: the call may have got another connection meanwhile, and given this one up.
    timeout: Duration,
}

type Stream = <HttpsConnector<HttpConnector> as Service<Uri>>::Response;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A connection in its place.
struct Held {
    stream: Stream,
    _place: OwnedSemaphorePermit,
}

impl Service<Uri> for Bounded {
    type Response = Held;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Held, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (mut inner, places) = (self.inner.clone(), Arc::clone(&self.places));
        let connecting = async move {
            let place = places.acquire_owned().await?;
            std::future::poll_fn(|cx| inner.poll_ready(cx)).await?;
            Ok(Held { stream: inner.call(uri).await?, _place: place })
        };
        let timeout = self.timeout;
        Box::pin(async move { tokio::time::timeout(timeout, connecting).await? })
    }
}

impl Connection for Held {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}

impl Read for Held {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for Held {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_configured_as_a_url_can_be_asked() {
        for host in ["a", "a_b.example.", "[::1]", "[::ffff:1.2.3.4]:8080", "127.0.0.1:1", "A-1:65535"] {
            for byte in 0..=127u8 {
                for text in
                    [format!("http://{host}/{}x", char::from(byte)), format!("https://{host}/?{}", char::from(byte))]
                {
                    if let Ok(url) = text.parse::<EndpointUrl>() {
                        let host = url.host().to_string();
                        assert_eq!(uri(&url).authority().map(|authority| authority.as_str()), Some(&*host), "{text:?}");
                    }
                }
            }
        }
    }
}
