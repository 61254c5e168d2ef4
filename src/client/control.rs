//! The control plane, as a backend in Rust calls it.

mod options;
mod pushing;
mod sessions;

use std::time::Duration;

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

pub use self::{
    options::ControlOptions,
    pushing::{PushOutcomes, PushSink},
    sessions::Sessions,
};
use super::{
    CallError, ConnectError, Follower, OnlineStatus,
    answer::{BroadcastOutcome, Host, Info, OnlineState, PushOutcome, PushRequest},
};
use crate::{
    model::Transport,
    proto::{self, gateway_client::GatewayClient},
};

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
    client: RawClient,
}

/// The generated client, which adds the secret to each call.
pub type RawClient = GatewayClient<InterceptedService<Channel, Bearer>>;

/// Adds the secret to each call.
#[derive(Debug, Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

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
    /// Cancel-safe in so far as nothing breaks; a push whose call is dropped may have been sent or not.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here.
    pub async fn push(&self, uid: &str, uri: &str, body: &str) -> Result<PushOutcome, CallError> {
        self.push_request(PushRequest::new(uid, uri, body)).await
    }

    /// Pushes one message and waits up to `ack_timeout` (over 0, at most 5 minutes) for the device's answer: a call to
    /// the device.
    ///
    /// Cancel-safe as [`Control::push`] is: dropping it ends the wait, and takes nothing back.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here.
    pub async fn ask(&self, uid: &str, uri: &str, body: &str, ack_timeout: Duration) -> Result<PushOutcome, CallError> {
        self.push_request(PushRequest { ack_timeout: Some(ack_timeout), ..PushRequest::new(uid, uri, body) }).await
    }

    async fn push_request(&self, push: PushRequest) -> Result<PushOutcome, CallError> {
        Ok(self.raw().push(proto::PushRequest::from(push)).await?.into_inner().into())
    }

    /// Pushes many messages over one call, the fastest way: pushes go into the first of the pair, and an outcome for each
    /// comes out of the second. At most `window` (1 at least) are without an outcome at a time, then [`PushSink::send`]
    /// waits: so outcomes must be read while pushes are sent. The gateway has a bound of its own,
    /// `control.stream_window` (10,000); a window above it gains nothing.
    ///
    /// Cancel-safe: nothing is sent before the pair is there.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here.
    pub async fn push_stream(&self, window: usize) -> Result<(PushSink, PushOutcomes), CallError> {
        pushing::begin(self.raw(), window).await
    }

    /// Pushes one message to 1 to 10,000 uids; an outcome for each, in order.
    ///
    /// Cancel-safe as [`Control::push`] is: the gateway goes through all uids, also where the call is dropped.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here.
    pub async fn push_many(
        &self,
        uids: impl IntoIterator<Item = impl Into<String>>,
        uri: &str,
        body: &str,
    ) -> Result<Vec<PushOutcome>, CallError> {
        let request = proto::PushManyRequest { uids: owned(uids), uri: uri.to_owned(), body: body.to_owned() };
        Ok(all(self.raw().push_many(request).await?.into_inner().results))
    }

    /// Pushes one message to everyone who is connected.
    ///
    /// Cancel-safe as [`Control::push`] is: the gateway goes through everyone, also where the call is dropped.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here.
    pub async fn broadcast(&self, uri: &str, body: &str) -> Result<BroadcastOutcome, CallError> {
        let request = proto::BroadcastRequest { uri: uri.to_owned(), body: body.to_owned() };
        Ok(self.raw().broadcast(request).await?.into_inner().into())
    }

    /// Tells who of 1 to 10,000 uids is online; a state for each, in order. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here.
    pub async fn is_online(
        &self,
        uids: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Vec<OnlineState>, CallError> {
        Ok(all(self.raw().is_online(proto::IsOnlineRequest { uids: owned(uids) }).await?.into_inner().states))
    }

    /// Tells who of `uids` (up to 10,000; none: everyone) is online, and every change from then on, over broken
    /// connections and restarts of the gateway: what it promises stands at [`OnlineStatus`]. Nothing is called before it
    /// is polled.
    #[must_use]
    pub fn online_status(&self, uids: impl IntoIterator<Item = impl Into<String>>) -> OnlineStatus {
        OnlineStatus::new(self.follow(uids))
    }

    /// The events themselves, as the gateway tells them, and cursors to go on from in another process: for who keeps the
    /// states elsewhere. Over broken connections as [`Control::online_status`]. Nothing is called before it is polled.
    #[must_use]
    pub fn follow(&self, uids: impl IntoIterator<Item = impl Into<String>>) -> Follower {
        Follower::new(self.clone(), owned(uids))
    }

    /// Where a device should connect now. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here. [`CallError::Unavailable`] where no node takes devices by this transport.
    pub async fn host(&self, transport: Transport) -> Result<Host, CallError> {
        let transport = match transport {
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
        };
        Ok(self.raw().get_host(proto::GetHostRequest { transport: transport.to_owned() }).await?.into_inner().into())
    }

    /// What the node is and holds. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here.
    pub async fn info(&self) -> Result<Info, CallError> {
        Ok(self.raw().get_info(proto::GetInfoRequest {}).await?.into_inner().into())
    }

    /// Closes all connections of `uid`; tells how many. `reason` goes to the gateway's log.
    ///
    /// Cancel-safe in so far as nothing breaks; where the call is dropped they may be closed or not.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here.
    pub async fn disconnect(&self, uid: &str, reason: &str) -> Result<u32, CallError> {
        let request = proto::DisconnectRequest { uid: uid.to_owned(), reason: reason.to_owned() };
        Ok(self.raw().disconnect(request).await?.into_inner().connections)
    }

    /// Lists the authenticated connections of `uid`; of everyone where it is empty. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`CallError`], as every call here; also from the stream.
    pub async fn sessions(&self, uid: &str) -> Result<Sessions, CallError> {
        let request = proto::ListSessionsRequest { uid: uid.to_owned() };
        Ok(Sessions::new(self.raw().list_sessions(request).await?.into_inner()))
    }

    /// The generated client that everything here goes through, for what has no method: [`crate::proto`], with its own
    /// numbers and [`Status`], which becomes a [`CallError`]. Cheap, and over the same connection.
    #[must_use]
    pub fn raw(&self) -> RawClient {
        self.client.clone()
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

fn owned(uids: impl IntoIterator<Item = impl Into<String>>) -> Vec<String> {
    uids.into_iter().map(Into::into).collect()
}

fn all<T, U: From<T>>(answers: Vec<T>) -> Vec<U> {
    answers.into_iter().map(U::from).collect()
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
