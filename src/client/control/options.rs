//! How a control plane is called: by which secret, over which TLS.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::{io::AsyncBufReadExt, time::timeout};
use tonic::{
    codegen::{Service, http::Uri},
    transport::{Channel, Endpoint},
};
use tower::BoxError;

use crate::{
    client::ConnectError,
    tls::{self, Trusted},
};

/// How long a server's first word is waited for. It needn't come: HTTP/2 lets a server be silent until it is spoken to.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// How a control plane is called. Its `Debug` doesn't show the secret.
#[derive(Clone, Default)]
pub struct ControlOptions {
    pub(super) secret: String,
    trusted: Trusted,
    identity: Option<(PathBuf, PathBuf)>,
}

impl ControlOptions {
    /// With this secret (empty: without one, as where a certificate stands in for it); the system says which gateways are
    /// trusted over `https`.
    #[must_use]
    pub fn new(secret: &str) -> Self {
        Self { secret: secret.to_owned(), ..Self::default() }
    }

    /// Trusts a gateway whose certificate is signed by one of this PEM file, instead of the system's.
    #[must_use]
    pub fn ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.trusted = Trusted::Ca(file.into());
        self
    }

    /// Trusts only the gateway that shows the first certificate of this PEM file, whatever name and time stand in it: for a
    /// program on the gateway's machine, which has the file of `control.tls_cert`.
    #[must_use]
    pub fn only(mut self, file: impl Into<PathBuf>) -> Self {
        self.trusted = Trusted::Only(file.into());
        self
    }

    /// Shows a certificate: PEM files of it, with those that sign it behind, and of its private key.
    #[must_use]
    pub fn certificate(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some((cert.into(), key.into()));
        self
    }

    /// Whether anything of TLS was asked for.
    pub(super) fn wants_tls(&self) -> bool {
        self.trusted != Trusted::System || self.identity.is_some()
    }

    /// A channel over TLS. Reads the files.
    pub(super) fn channel(&self, endpoint: &Endpoint) -> Result<Channel, ConnectError> {
        let identity = self.identity.as_ref().map(|(cert, key)| (Path::new(cert), Path::new(key)));
        let config = tls::client_config_of(&self.trusted, identity)?;
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        // It would take `https` for a mistake.
        tcp.enforce_http(false);
        let tls = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http2().wrap_connector(tcp);
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |uri| connect(tls.clone(), uri))))
    }
}

/// Connects. In TLS 1.3 a client has shaken hands before the server has judged its certificate; a word of the server says
/// that it did, or why the client isn't wanted, which would be lost behind the first call's "connection closed".
async fn connect(
    mut tls: HttpsConnector<HttpConnector>,
    uri: Uri,
) -> Result<MaybeHttpsStream<<HttpConnector as Service<Uri>>::Response>, BoxError> {
    let mut stream = tls.call(uri).await?;
    if let MaybeHttpsStream::Https(stream) = &mut stream
        && let Ok(first) = timeout(FIRST_WORD, stream.inner_mut().fill_buf()).await
    {
        first?;
    }
    Ok(stream)
}

impl fmt::Debug for ControlOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { secret, trusted, identity } = self;
        let secret = if secret.is_empty() { "none" } else { "MASKED" };
        f.debug_struct("ControlOptions")
            .field("secret", &format_args!("{secret}"))
            .field("trusted", trusted)
            .field("identity", identity)
            .finish()
    }
}
