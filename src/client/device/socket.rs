//! What a device speaks over: a socket, with or without TLS.

use std::{
    io::{self, IoSlice},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{address::host_of, login::LoginError};
use crate::tls;

/// How a device knows its gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceTls {
    /// The name, or IP address, that the gateway's certificate must have. None, the default: the host that is connected to.
    pub server_name: Option<String>,
    /// A PEM file with the certificates that sign the gateway's, read at each connecting. None, the default: the system's.
    pub ca: Option<PathBuf>,
}

impl DeviceTls {
    /// The system's certificates, and the host that is connected to.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Wants this name, or IP address, in the gateway's certificate.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Trusts the certificates of this PEM file, and no others.
    #[must_use]
    pub fn ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.ca = Some(file.into());
        self
    }

    /// For any number of connections to the gateway at `address`, HOST:PORT: reads the files, now and never again.
    pub(crate) fn connector(&self, address: &str) -> Result<DeviceConnector, LoginError> {
        let name = self.server_name.as_deref().unwrap_or_else(|| host_of(address)).to_owned();
        let name = ServerName::try_from(name.clone()).map_err(|_| LoginError::ServerName(name))?;
        let config = tls::client_config(self.ca.as_deref()).map_err(LoginError::File)?;
        Ok(DeviceConnector { name, tls: Arc::new(config).into() })
    }
}

/// What makes connections by TLS to a gateway of one name. Cheap to clone.
#[derive(Clone)]
pub(crate) struct DeviceConnector {
    name: ServerName<'static>,
    tls: TlsConnector,
}

impl DeviceConnector {
    /// The handshake.
    pub(crate) async fn connect(&self, stream: TcpStream) -> io::Result<DeviceSocket> {
        Ok(DeviceSocket::Tls(Box::new(self.tls.connect(self.name.clone(), stream).await?)))
    }
}

/// A socket, with or without TLS.
#[derive(Debug)]
pub enum DeviceSocket {
    /// Without.
    Plain(TcpStream),
    /// With.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for DeviceSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => match Pin::new(stream).poll_read(cx, buffer) {
                // A frame's length tells whether something is missing, so an end without TLS's own word is one.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                read => read,
            },
        }
    }
}

impl AsyncWrite for DeviceSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
