//! `grpc`: a backend is asked that serves `plex.v1.Authenticator`.

use std::{
    path::PathBuf,
    sync::{PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use hyper::{Uri, rt::Executor};
use tokio::runtime::Handle;
use tonic::{
    Code, Request,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};
use tower::Service;

use super::{
    AuthError, AuthFuture, AuthRequest, Authenticator, Identity,
    web::{self, ANSWER_BYTES_MAX, SecretFile},
};
use crate::{
    config::EndpointUrl,
    files::FileError,
    proto::{AuthenticateRequest, authenticator_client::AuthenticatorClient},
};

/// The largest list of headers and trailers, in bytes.
const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// Asks `auth.endpoint` over one connection, which is opened anew when it is lost.
pub(super) struct Grpc {
    url: EndpointUrl,
    ca: Option<PathBuf>,
    secret: Option<SecretFile>,
    timeout: Duration,
    handle: Handle,
    channel: RwLock<Channel>,
}

/// Runs what belongs to the connection on the runtime of a handle.
struct On(Handle);

impl Executor<BoxFuture<'static, ()>> for On {
    fn execute(&self, task: BoxFuture<'static, ()>) {
        self.0.spawn(task);
    }
}

impl Grpc {
    /// Reads `ca`, or the system's certificates where the URL needs some. Nothing is asked yet.
    pub(super) fn new(
        url: EndpointUrl,
        ca: Option<PathBuf>,
        secret: Option<SecretFile>,
        timeout: Duration,
        handle: Handle,
    ) -> Result<Self, FileError> {
        let channel = RwLock::new(channel(&url, ca.as_ref(), timeout, &handle)?);
        Ok(Self { url, ca, secret, timeout, handle, channel })
    }

    /// Reads `auth.ca` again, for a new connection; a bad one leaves all as it was. Logs either.
    pub(super) fn reload_ca(&self) {
        match channel(&self.url, self.ca.as_ref(), self.timeout, &self.handle) {
            Ok(channel) => {
                *self.channel.write().unwrap_or_else(PoisonError::into_inner) = channel;
                tracing::info!("auth.ca read again");
            }
            Err(error) => tracing::error!(%error, "auth.ca: the certificates before go on"),
        }
    }

    async fn ask(&self, request: AuthRequest<'_>) -> Result<Identity, AuthError> {
        let channel = self.channel.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut client = AuthenticatorClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let mut question = Request::new(AuthenticateRequest {
            credential: request.credential.to_owned(),
            remote_address: request.remote_address.to_owned(),
        });
        question.set_timeout(self.timeout);
        if let Some(secret) = &self.secret {
            let bearer = AsciiMetadataValue::try_from(secret.bearer().as_bytes()).expect("it was a header's value");
            question.metadata_mut().insert("authorization", bearer);
        }
        let answer = match client.authenticate(question).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                return Err(match status.code() {
                    Code::Unauthenticated | Code::PermissionDenied => AuthError::Refused,
                    // Its message may quote the credential.
                    code => AuthError::Unavailable(format!("auth.endpoint answers {code:?}")),
                });
            }
        };
        let identity = Identity::new(answer.uid);
        match answer.expires_at {
            None => Ok(identity),
            // Before 1970: it is over, whenever it was.
            Some(end) if end.seconds < 0 => Err(AuthError::Refused),
            Some(end) => match SystemTime::try_from(end) {
                Ok(end) => Ok(identity.expires_at(end)),
                Err(_) => {
                    Err(AuthError::Unavailable("auth.endpoint answers with an expires_at that is no time".into()))
                }
            },
        }
    }
}

impl Authenticator for Grpc {
    fn authenticate<'a>(&'a self, request: AuthRequest<'a>) -> AuthFuture<'a> {
        Box::pin(self.ask(request))
    }
}

fn channel(url: &EndpointUrl, ca: Option<&PathBuf>, timeout: Duration, handle: &Handle) -> Result<Channel, FileError> {
    let connector = web::connector(url, ca, timeout, true)?;
    let scheme = if url.is_https() { "https" } else { "http" };
    let target = |scheme| -> Uri {
        let uri = format!("{scheme}://{}", url.host()).parse();
        uri.expect("a URL of the configuration has been checked")
    };
    let (origin, address) = (target(scheme), target(scheme));
    // TLS is the connector's part: to tonic it is a plain connection.
    let endpoint = Endpoint::from(target("http"))
        .origin(origin)
        .user_agent(web::AGENT)
        .expect("a name and a version can travel in a header")
        .connect_timeout(timeout)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .executor(On(handle.clone()));
    let connect = tower::service_fn(move |_: Uri| connector.clone().call(address.clone()));
    // Its own tasks begin at once.
    Ok(endpoint.connect_with_connector_lazy(connect))
}
