//! What a device authenticates with, and where it comes from.

use std::{error::Error, fmt, sync::Arc};

use futures_util::{FutureExt, TryFutureExt, future::BoxFuture};

use super::LoginError;

/// What a device authenticates with: a text, or what makes one for each login. Its `Debug` shows neither.
#[derive(Clone)]
pub struct Credential(Source);

#[derive(Clone)]
enum Source {
    Fixed(String),
    Made(Arc<dyn Fn() -> BoxFuture<'static, Result<String, LoginError>> + Send + Sync>),
}

impl Credential {
    /// A credential that is made anew for each login, and before the session of the last one ends: a token that expires.
    /// A failure is as a gateway that can't be reached: it is tried again later. The time that it takes counts against
    /// [`DeviceOptions::timeout`](super::DeviceOptions::timeout), after which its future is dropped.
    pub fn from_fn<F, T, E>(make: F) -> Self
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + 'static,
    {
        Self(Source::Made(Arc::new(move || make().map_err(|error| LoginError::NoCredential(error.into())).boxed())))
    }

    /// Whether it is always the same.
    pub(super) fn is_fixed(&self) -> bool {
        matches!(self.0, Source::Fixed(_))
    }

    pub(super) async fn get(&self) -> Result<String, LoginError> {
        match &self.0 {
            Source::Fixed(text) => Ok(text.clone()),
            Source::Made(make) => make().await,
        }
    }
}

impl From<String> for Credential {
    fn from(text: String) -> Self {
        Self(Source::Fixed(text))
    }
}

impl From<&str> for Credential {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl From<&String> for Credential {
    fn from(text: &String) -> Self {
        Self::from(text.clone())
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_fixed() { "MASKED" } else { "made for each login" })
    }
}
