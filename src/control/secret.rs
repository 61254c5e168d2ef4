//! The bearer secret that every call carries.

use std::sync::Arc;

use subtle::{Choice, ConstantTimeEq};
use tonic::{Request, Status};

use crate::{config::Secret, telemetry::Metrics};

/// The secrets that are valid now.
#[derive(Clone)]
pub(super) struct Secrets {
    secrets: Arc<[Secret]>,
    metrics: Metrics,
}

impl Secrets {
    pub(super) fn new(secrets: Vec<Secret>, metrics: Metrics) -> Self {
        Self { secrets: secrets.into(), metrics }
    }

    /// Lets a call pass that shows one of them. Each is compared, in constant time.
    pub(super) fn check(&self, request: Request<()>) -> Result<Request<()>, Status> {
        let shown = request.metadata().get("authorization").and_then(|value| bearer(value.as_encoded_bytes()));
        let known = shown.is_some_and(|shown| {
            let fits = |secret: &Secret| shown.ct_eq(secret.expose().as_bytes());
            bool::from(self.secrets.iter().map(fits).fold(Choice::from(0), |any, fits| any | fits))
        });
        if known {
            return Ok(request);
        }
        self.metrics.unauthorized.inc();
        Err(Status::unauthenticated("authorization: `Bearer SECRET` with a secret of control.secrets is needed"))
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, secret) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(secret)
}
