//! From an address to an authenticated connection.

use std::{io, time::Duration};

use futures_util::StreamExt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, ToSocketAddrs},
    time::timeout,
};

use super::{
    AuthAnswer, Device, DeviceOptions, DeviceStream,
    event::{self, Body},
};
use crate::{device::codec::CodecError, files::FileError};

/// Why a device isn't connected.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The credential is not good; the same one will not be.
    #[error("the credential was refused")]
    Refused,
    /// The gateway can't check credentials at this time.
    #[error("the gateway can't check credentials at this time")]
    Unavailable,
    /// The gateway closed the connection without an answer.
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

impl Device {
    /// Connects to a gateway at `address` and authenticates.
    ///
    /// # Errors
    ///
    /// [`LoginError`]; nothing stays open then.
    pub async fn connect(address: impl ToSocketAddrs, options: DeviceOptions) -> Result<Self, LoginError> {
        let limit = options.timeout;
        let connecting = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let stream = match &options.tls {
                None => DeviceStream::Plain(stream),
                Some(tls) => tls.connector()?.connect(stream).await?,
            };
            authenticated(stream, &options).await
        };
        timeout(limit, connecting).await.map_err(|_| LoginError::TimedOut(limit))?
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Device<S> {
    /// As [`Device::connect`], over a connection made otherwise; [`DeviceOptions::tls`] isn't looked at.
    ///
    /// # Errors
    ///
    /// [`LoginError`]; the connection is dropped then.
    pub async fn over(stream: S, options: DeviceOptions) -> Result<Self, LoginError> {
        let limit = options.timeout;
        timeout(limit, authenticated(stream, &options)).await.map_err(|_| LoginError::TimedOut(limit))?
    }
}

async fn authenticated<S>(stream: S, options: &DeviceOptions) -> Result<Device<S>, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut device = Device::new(stream, options);
    device.authenticate(&options.credential).await?;
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
