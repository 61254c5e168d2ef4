//! The client's side: whom the gateway, its commands and the library's clients trust.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, WantsVerifier,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::{certificates, private_key, provider, roots};
use crate::files::FileError;

/// Which servers are trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Trusted {
    /// Those whose certificates the system's sign.
    #[default]
    System,
    /// Those whose certificates are signed by one of a PEM file.
    Ca(PathBuf),
    /// Only the one that shows the first certificate of a PEM file, whatever its name and time: for who has the server's own
    /// file. Its key is proven as always.
    Only(PathBuf),
}

/// What signs the certificates of servers that are called: those of a PEM file, else the system's.
///
/// # Errors
///
/// A file that can't be read or holds no certificate. A system without any certificate isn't an error here: no
/// server is trusted then.
pub(crate) fn client_config(ca: Option<&Path>) -> Result<ClientConfig, FileError> {
    client_config_of(&ca.map_or(Trusted::System, |file| Trusted::Ca(file.to_owned())), None)
}

/// The same, in full; `identity` is a certificate, with its key, that is shown to a server that asks for one.
pub(crate) fn client_config_of(trusted: &Trusted, identity: Option<(&Path, &Path)>) -> Result<ClientConfig, FileError> {
    let builder = builder();
    let builder = match trusted {
        Trusted::System => builder.with_root_certificates(system_roots()),
        Trusted::Ca(file) => builder.with_root_certificates(roots(file)?),
        Trusted::Only(file) => builder.dangerous().with_custom_certificate_verifier(Arc::new(OnlyOne::load(file)?)),
    };
    let Some((cert, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    builder
        .with_client_auth_cert(certificates(cert)?, private_key(key)?)
        .map_err(|error| FileError::new(cert, format_args!("no certificate for {}: {error}", key.display())))
}

/// For servers that are called without TLS: reads nothing, trusts nobody.
pub(crate) fn trusting_nobody() -> ClientConfig {
    builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth()
}

fn builder() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider knows TLS 1.2 and 1.3")
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// Trusts one certificate.
#[derive(Debug)]
struct OnlyOne {
    file: PathBuf,
    certificate: CertificateDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl OnlyOne {
    fn load(file: &Path) -> Result<Self, FileError> {
        let certificate = certificates(file)?.swap_remove(0);
        let algorithms = provider().signature_verification_algorithms;
        Ok(Self { file: file.to_owned(), certificate, algorithms })
    }
}

impl ServerCertVerifier for OnlyOne {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *shown == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::General(format!("the gateway shows another certificate than {} holds", self.file.display())))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
