//! Certificates made for a test, and devices that come by TLS.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc};

use plex::Config;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tempfile::TempDir;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{PATIENCE, TestDevice};

pub type TlsDevice = TestDevice<TlsStream<TcpStream>>;

/// Signs certificates; `ca.pem`, `cert.pem` and `key.pem` stand in a folder of its own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca: CertificateDer<'static>,
    pub folder: TempDir,
}

impl Authority {
    /// With a certificate for `localhost` and 127.0.0.1.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // Another name than its certificates have, or some take those for self-signed.
        params.distinguished_name.push(DnType::CommonName, "the test's authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        let authority =
            Self { issuer: Issuer::new(params, key), ca: ca.der().clone(), folder: tempfile::tempdir().unwrap() };
        fs::write(authority.path("ca.pem"), ca.pem()).unwrap();
        authority.issue();
        authority
    }

    /// A path as an argument.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("the test's folder has a plain name").to_owned()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a new certificate with a new key in the place of the old; gives it.
    pub fn issue(&self) -> CertificateDer<'static> {
        self.issue_for(&["localhost", "127.0.0.1"])
    }

    /// The same, for these names and addresses.
    pub fn issue_for(&self, names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path("cert.pem"), certificate.pem()).unwrap();
        fs::write(self.path("key.pem"), key.serialize_pem()).unwrap();
        certificate.der().clone()
    }

    /// The certificate that stands in the file.
    pub fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path("cert.pem")).unwrap()
    }

    /// Devices by TLS as well, on port 0.
    pub fn serve(&self, config: &mut Config) {
        config.device.tls_listen = Some("127.0.0.1:0".parse().unwrap());
        config.device.tls_cert = Some(self.path("cert.pem"));
        config.device.tls_key = Some(self.path("key.pem"));
    }

    /// What a device trusts: this authority.
    pub fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_protocol_versions(versions).unwrap();
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    }

    /// A device that has done its handshake, and says nothing.
    pub async fn connect(&self, address: SocketAddr) -> TlsDevice {
        self.over(TcpStream::connect(address).await.expect("the gateway takes devices"), rustls::ALL_VERSIONS).await
    }

    /// As [`Self::connect`], with a small window.
    pub async fn connect_narrow(&self, address: SocketAddr) -> TlsDevice {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        self.over(socket.connect(address).await.expect("the gateway takes devices"), rustls::ALL_VERSIONS).await
    }

    /// Does the handshake over this.
    pub async fn over(&self, stream: TcpStream, versions: &[&'static SupportedProtocolVersion]) -> TlsDevice {
        stream.set_nodelay(true).unwrap();
        let connector = TlsConnector::from(self.client(versions));
        let handshake = connector.connect(ServerName::try_from("localhost").unwrap(), stream);
        let stream = timeout(PATIENCE, handshake).await.expect("in time").expect("a handshake");
        TestDevice { stream, little_endian: false }
    }

    /// A device that has authenticated, of dialect 2.
    pub async fn login(&self, address: SocketAddr, uid: &str) -> TlsDevice {
        let mut device = self.connect(address).await;
        device.auth_v2(uid).await;
        let answer = device.next().await;
        assert_eq!(answer.uri, "/auth/success", "{answer:?}");
        device
    }
}

/// The certificate that the gateway showed.
pub fn shown(device: &TlsDevice) -> CertificateDer<'static> {
    device.stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}
