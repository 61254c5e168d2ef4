//! TLS by files: certificates and keys of listeners, which are renewed while they run, and what the gateway trusts
//! where it calls others.

mod accept;
mod client;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};

pub(crate) use self::{
    accept::{Failed, HANDSHAKE_TIMEOUT, Handshakes, accept},
    client::{Trusted, client_config, client_config_of, trusting_nobody},
};
use crate::files::{self, FileError};

/// The files of one listener's TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// PEM: the own certificate first, then those that sign it.
    pub(crate) cert: PathBuf,
    /// PEM: its private key.
    pub(crate) key: PathBuf,
    /// PEM: what signs the certificates of clients, which then have to show one.
    pub(crate) client_ca: Option<PathBuf>,
}

/// What a listener shows, as its files last said. Cheap to clone; all clones change together.
#[derive(Debug, Clone)]
pub(crate) struct ServerTls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    files: TlsFiles,
    protocols: &'static [&'static [u8]],
    config: RwLock<Arc<ServerConfig>>,
}

impl TlsFiles {
    /// Those of a listener, where it has TLS.
    pub(crate) fn of(cert: Option<&PathBuf>, key: Option<&PathBuf>, client_ca: Option<&PathBuf>) -> Option<Self> {
        Some(Self { cert: cert?.clone(), key: key?.clone(), client_ca: client_ca.cloned() })
    }

    /// All of them.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        [&self.cert, &self.key].into_iter().chain(&self.client_ca).cloned().collect()
    }

    fn load(&self, protocols: &[&[u8]]) -> Result<Arc<ServerConfig>, FileError> {
        let chain = certificates(&self.cert)?;
        let key = private_key(&self.key)?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider knows TLS 1.2 and 1.3");
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let roots = Arc::new(roots(file)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                    .build()
                    .map_err(|error| FileError::new(file, error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            FileError::new(&self.cert, format_args!("no certificate for {}: {error}", self.key.display()))
        })?;
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        // A connection lasts for days: what would make its next one quicker isn't worth keeping.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

impl ServerTls {
    /// Reads the files. `protocols` is what is offered by ALPN.
    pub(crate) fn load(files: TlsFiles, protocols: &'static [&'static [u8]]) -> Result<Self, FileError> {
        let config = RwLock::new(files.load(protocols)?);
        Ok(Self(Arc::new(Inner { files, protocols, config })))
    }

    /// What a new connection is shown.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the files again, for new connections; one that can't be used leaves all as it was. Logs either.
    pub(crate) fn reload(&self) {
        let Inner { files, protocols, config } = &*self.0;
        match files.load(protocols) {
            Ok(new) => {
                *config.write().unwrap_or_else(PoisonError::into_inner) = new;
                tracing::info!(cert = %files.cert.display(), "certificate read again");
            }
            Err(error) => tracing::error!(%error, "the certificate before goes on"),
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn roots(file: &Path) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| FileError::new(file, error))?;
    }
    Ok(roots)
}

/// The private key of a PEM file.
fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_slice(&files::read(file)?)
        .map_err(|error| FileError::new(file, format_args!("holds no private key in PEM: {error}")))
}

/// The certificates of a PEM file, at least one.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let text = files::read(file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(FileError::new(file, "holds no certificate in PEM")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(FileError::new(file, format_args!("holds no certificate in PEM: {error}"))),
    }
}
