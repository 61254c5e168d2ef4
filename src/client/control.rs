//! The control plane, as a backend in Rust calls it.

mod options;

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::Stream;
use tonic::{
    Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

pub use self::options::ControlOptions;
use super::{CallError, ConnectError, Follower};
use crate::proto::{self, gateway_client::GatewayClient};

/// The longest message, either way; the gateway's own limit.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// A gateway on the same network answers in less, and a lost packet is sent again within 3 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may be silent before it is asked for a sign of life, and how long that may take: a gateway
/// that vanished without a word is noticed in 20 s.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A gateway's control plane. Cheap to clone: one connection for all clones, made with the first call, and made anew
/// where it broke.
#[derive(Debug, Clone)]
pub struct Control {
    client: GatewayClient<InterceptedService<Channel, Bearer>>,
}

/// Adds the secret to each call.
#[derive(Debug, Clone)]
struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(bearer) = &self.0 {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        Ok(request)
    }
}

impl Control {
    /// A control plane at `url`, `http://HOST:PORT` or `https://HOST:PORT`, called with `secret` (empty: without one).
    /// Nothing is connected yet: the first call does. To be called inside a Tokio runtime.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] where the address or the secret can't be used, whatever listens there.
    pub fn connect(url: &str, secret: &str) -> Result<Self, ConnectError> {
        Self::connect_with(url, &ControlOptions::new(secret))
    }

    /// As [`Control::connect`], with what TLS needs. Reads the files, now and never again.
    ///
    /// # Errors
    ///
    /// [`ConnectError`], also where a file can't be used, and where certificates were given for `http`.
    pub fn connect_with(url: &str, options: &ControlOptions) -> Result<Self, ConnectError> {
        let address = || ConnectError::Address(url.to_owned());
        // Before tonic sees it, for which `unix:` is an address too.
        let begins = |scheme: &str| url.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
        let is_https = begins("https://");
        if !is_https && !begins("http://") {
            return Err(address());
        }
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|_| address())?;
        let uri = endpoint.uri();
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        if uri.host().is_none_or(str::is_empty) || path != "/" {
            return Err(address());
        }
        let endpoint = endpoint
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE);
        let channel = match (is_https, options.wants_tls()) {
            (true, _) => options.channel(&endpoint)?,
            (false, false) => endpoint.connect_lazy(),
            (false, true) => return Err(ConnectError::Plain(url.to_owned())),
        };
        let client = GatewayClient::with_interceptor(channel, Bearer::new(&options.secret)?)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self { client })
    }

    /// Pushes one message to all connections of `uid`.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here.
    pub async fn push(&self, uid: &str, uri: &str, body: &str) -> Result<proto::PushResponse, CallError> {
        self.push_request(push_request(uid, uri, body)).await
    }

    /// Pushes one message and waits up to `ack_timeout` (over 0, at most 5 minutes) for the device's answer: a call to
    /// the device.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here.
    pub async fn ask(
        &self,
        uid: &str,
        uri: &str,
        body: &str,
        ack_timeout: Duration,
    ) -> Result<proto::PushResponse, CallError> {
        // What is too long for a protobuf duration is too long for the gateway: it tells the limit.
        let ack_timeout = ack_timeout.try_into().unwrap_or(prost_types::Duration { seconds: i64::MAX, nanos: 0 });
        self.push_request(proto::PushRequest { ack_timeout: Some(ack_timeout), ..push_request(uid, uri, body) }).await
    }

    /// Pushes one message, told in full.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here.
    pub async fn push_request(&self, request: proto::PushRequest) -> Result<proto::PushResponse, CallError> {
        Ok(self.client.clone().push(request).await?.into_inner())
    }

    /// Pushes many messages over one call; up to 1,000 to a batch. The results must be read while pushes are written.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here; also from the stream.
    pub async fn push_stream(
        &self,
        pushes: impl Stream<Item = proto::PushStreamRequest> + Send + 'static,
    ) -> Result<Responses<proto::PushStreamResponse>, CallError> {
        Ok(Responses(self.client.clone().push_stream(pushes).await?.into_inner()))
    }

    /// Pushes one message to 1 to 10,000 uids; an outcome for each, in order.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here.
    pub async fn push_many(
        &self,
        uids: impl IntoIterator<Item = impl Into<String>>,
        uri: &str,
        body: &str,
    ) -> Result<Vec<proto::PushResponse>, CallError> {
        let request = proto::PushManyRequest { uids: owned(uids), uri: uri.to_owned(), body: body.to_owned() };
        Ok(self.client.clone().push_many(request).await?.into_inner().results)
    }

    /// Pushes one message to everyone who is connected.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here.
    pub async fn broadcast(&self, uri: &str, body: &str) -> Result<proto::BroadcastResponse, CallError> {
        let request = proto::BroadcastRequest { uri: uri.to_owned(), body: body.to_owned() };
        Ok(self.client.clone().broadcast(request).await?.into_inner())
    }

    /// Tells who of 1 to 10,000 uids is online.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here.
    pub async fn is_online(
        &self,
        uids: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<proto::IsOnlineResponse, CallError> {
        Ok(self.client.clone().is_online(proto::IsOnlineRequest { uids: owned(uids) }).await?.into_inner())
    }

    /// One stream of presence, which ends when its connection does. [`Control::follow`] comes back by itself.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here; also from the stream.
    pub async fn online_status(
        &self,
        request: proto::OnlineStatusRequest,
    ) -> Result<Responses<proto::OnlineStatusResponse>, CallError> {
        Ok(Responses(self.client.clone().online_status(request).await?.into_inner()))
    }

    /// Follows the presence of `uids` (up to 10,000; none: everyone), over broken connections too.
    #[must_use]
    pub fn follow(&self, uids: impl IntoIterator<Item = impl Into<String>>) -> Follower {
        self.follow_request(proto::OnlineStatusRequest { uids: owned(uids), ..Default::default() })
    }

    /// As [`Control::follow`], from a kept cursor or without the first snapshot.
    #[must_use]
    pub fn follow_request(&self, request: proto::OnlineStatusRequest) -> Follower {
        Follower::new(self.clone(), request)
    }

    /// Where a device should connect now by `transport`: `tcp` (empty is the same) or `tls`.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here. [`CallError::Unavailable`] where no node takes devices by it.
    pub async fn host(&self, transport: &str) -> Result<proto::GetHostResponse, CallError> {
        let request = proto::GetHostRequest { transport: transport.to_owned() };
        Ok(self.client.clone().get_host(request).await?.into_inner())
    }

    /// What the node is and holds.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here.
    pub async fn info(&self) -> Result<proto::GetInfoResponse, CallError> {
        Ok(self.client.clone().get_info(proto::GetInfoRequest {}).await?.into_inner())
    }

    /// Closes all connections of `uid`; tells how many. `reason` goes to the gateway's log.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here.
    pub async fn disconnect(&self, uid: &str, reason: &str) -> Result<u32, CallError> {
        let request = proto::DisconnectRequest { uid: uid.to_owned(), reason: reason.to_owned() };
        Ok(self.client.clone().disconnect(request).await?.into_inner().connections)
    }

    /// Lists the authenticated connections of `uid`; of everyone where it is empty.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here; also from the stream.
    pub async fn sessions(&self, uid: &str) -> Result<Responses<proto::ListSessionsResponse>, CallError> {
        let request = proto::ListSessionsRequest { uid: uid.to_owned() };
        Ok(Responses(self.client.clone().list_sessions(request).await?.into_inner()))
    }

    /// The nodes of the cluster as the one that answers knows them, in the order of their names; a single node lists
    /// itself.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here.
    pub async fn nodes(&self) -> Result<Vec<proto::Node>, CallError> {
        Ok(self.client.clone().list_nodes(proto::ListNodesRequest {}).await?.into_inner().nodes)
    }
}

impl Bearer {
    fn new(secret: &str) -> Result<Self, ConnectError> {
        if secret.is_empty() {
            return Ok(Self(None));
        }
        let mut value: MetadataValue<Ascii> = format!("Bearer {secret}").parse().map_err(|_| ConnectError::Secret)?;
        // Kept out of Debug output, and out of HTTP/2's table of headers to repeat.
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

fn push_request(uid: &str, uri: &str, body: &str) -> proto::PushRequest {
    proto::PushRequest { uid: uid.to_owned(), uri: uri.to_owned(), body: body.to_owned(), ..Default::default() }
}

fn owned(uids: impl IntoIterator<Item = impl Into<String>>) -> Vec<String> {
    uids.into_iter().map(Into::into).collect()
}

/// What a call answers bit by bit; also a `Stream`. Dropping it ends the call.
#[derive(Debug)]
pub struct Responses<T>(Streaming<T>);

impl<T> Responses<T> {
    /// The next response; `None` at the end. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`CallError`] where the call ended otherwise; nothing comes after it.
    pub async fn message(&mut self) -> Result<Option<T>, CallError> {
        Ok(self.0.message().await?)
    }
}

impl<T> Stream for Responses<T> {
    type Item = Result<T, CallError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(Pin::new(&mut self.0).poll_next(cx));
        Poll::Ready(next.map(|response| response.map_err(CallError::from)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_http_or_https_and_a_host_is_an_address() {
        for address in ["http://127.0.0.1:9580", "http://[::1]:9580/", "http://localhost:1", "https://localhost:1"] {
            assert!(Control::connect(address, "secret").is_ok(), "{address}");
        }
        for address in [
            "",
            "127.0.0.1:9580",
            "https:/127.0.0.1:9580",
            "http://",
            "https://",
            "unix:///x",
            "http://a/b",
            "http://a b",
        ] {
            let error = Control::connect(address, "secret").expect_err(address);
            assert!(matches!(error, ConnectError::Address(_)), "{address}");
        }
    }

    #[tokio::test]
    async fn a_secret_is_never_printed() {
        let control = Control::connect("http://127.0.0.1:1", "very-secret").unwrap();
        assert!(!format!("{control:?} {:?}", ControlOptions::new("very-secret")).contains("very-secret"));
        let error = Control::connect("http://127.0.0.1:1", "very\nsecret").unwrap_err();
        assert!(matches!(error, ConnectError::Secret));
        assert!(!format!("{error:?} {error}").contains("secret\""));
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable() {
        // Bound and dropped: nobody listens.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let control = Control::connect(&format!("http://{address}"), "secret").unwrap();
        let error = control.info().await.unwrap_err();
        assert!(matches!(&error, CallError::Unreachable(why) if why.contains("refused")), "{error}");
    }
}
