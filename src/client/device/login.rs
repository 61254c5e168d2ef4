//! From an address to an authenticated connection.

use std::{error::Error, io, time::Duration};

use futures_util::StreamExt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use super::{
    AuthAnswer, Device, DeviceOptions, DeviceSocket, address,
    event::{self, Body},
};
use crate::{codec::CodecError, files::FileError};

/// Why a device isn't connected, or not any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoginError {
    /// The address is neither `HOST:PORT` nor the `http://HOST:PORT` or `https://HOST:PORT` of a host look-up.
    #[error("a gateway's address is HOST:PORT, or the http:// or https:// URL of its host look-up, this is {0:?}")]
    Address(String),
    /// The host look-up names no host at this time.
    #[error("the host look-up names no host: {0}")]
    NoHost(String),
    /// The credential could not be had: what [`Credential::from_fn`](super::Credential::from_fn) was given failed.
    #[error("no credential: {0}")]
    NoCredential(Box<dyn Error + Send + Sync>),
    /// The credential is not good; the same one will not be.
    #[error("the credential was refused")]
    Refused,
    /// The gateway can't check credentials at this time.
    #[error("the gateway can't check credentials at this time")]
    Unavailable,
    /// The gateway closed the connection.
    #[error("the gateway closed the connection")]
    Closed,
    /// No answer in [`DeviceOptions::timeout`].
    #[error("no answer in {0:?}")]
    TimedOut(Duration),
    /// Nobody is there, or the connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file of certificates can't be used.
    #[error(transparent)]
    File(FileError),
    /// What the gateway's certificate is to have is neither a name nor an IP address.
    #[error("{0:?} is neither a name nor an IP address")]
    ServerName(String),
    /// One side didn't understand the other.
    #[error("{0}")]
    Protocol(String),
}

impl From<CodecError> for LoginError {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::Io(error) => Self::Io(error),
            other => Self::Protocol(other.to_string()),
        }
    }
}

impl LoginError {
    /// Whether another try, with the same credential, can't end otherwise.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Refused | Self::ServerName(_) | Self::Address(_))
    }
}

impl Device {
    /// Connects to a gateway and authenticates. `address` is its `HOST:PORT`; or `http://HOST:PORT` or
    /// `https://HOST:PORT`, where its HTTP port is asked for the host that takes devices now (`GET /plex/v1/host`).
    ///
    /// Cancel-safe: where it is dropped, nothing stays open.
    ///
    /// # Errors
    ///
    /// [`LoginError`]; nothing stays open then.
    pub async fn connect(address: impl ToString, options: DeviceOptions) -> Result<Self, LoginError> {
        let address = address.to_string();
        Ok(connect(&address, &options).await?.1)
    }
}

/// Connects; tells to which `HOST:PORT`.
pub(super) async fn connect(address: &str, options: &DeviceOptions) -> Result<(String, Device), LoginError> {
    let limit = options.timeout;
    let connecting = async {
        let credential = options.credential.get().await?;
        let address = address::find(address, options.tls.as_ref()).await?;
        let stream = TcpStream::connect(&address).await?;
        stream.set_nodelay(true)?;
        let stream = match &options.tls {
            None => DeviceSocket::Plain(stream),
            Some(tls) => tls.connector(&address)?.connect(stream).await?,
        };
        Ok((address, authenticated(stream, options, &credential).await?))
    };
    timeout(limit, connecting).await.map_err(|_| LoginError::TimedOut(limit))?
}

impl<S: AsyncRead + AsyncWrite + Unpin> Device<S> {
    /// As [`Device::connect`], over a connection made otherwise; [`DeviceOptions::tls`] isn't looked at.
    ///
    /// Cancel-safe: where it is dropped, so is the connection.
    ///
    /// # Errors
    ///
    /// [`LoginError`]; the connection is dropped then.
    pub async fn over(stream: S, options: DeviceOptions) -> Result<Self, LoginError> {
        let limit = options.timeout;
        let connecting = async {
            let credential = options.credential.get().await?;
            authenticated(stream, &options, &credential).await
        };
        timeout(limit, connecting).await.map_err(|_| LoginError::TimedOut(limit))?
    }
}

async fn authenticated<S>(stream: S, options: &DeviceOptions, credential: &str) -> Result<Device<S>, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut device = Device::new(stream, options);
    device.authenticate(credential).await?;
    loop {
        let message = device.input.next().await.ok_or(LoginError::Closed)??;
        match AuthAnswer::from_message(&message) {
            Some(AuthAnswer::Success(welcome)) => {
                device.welcome = welcome;
                device.beat(options.heartbeats);
                return Ok(device);
            }
            Some(AuthAnswer::Refused) => return Err(LoginError::Refused),
            Some(AuthAnswer::Unavailable) => return Err(LoginError::Unavailable),
            None if message.uri == "/plex/error" => {
                let Body { reason, detail, .. } = event::body(&message);
                return Err(LoginError::Protocol(format!("the gateway didn't understand: {reason}: {detail}")));
            }
            // Nothing else comes before the answer; what a later gateway might send is not for this device.
            None => {}
        }
    }
}
