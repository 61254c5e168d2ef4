//! `http`: a backend is asked by a POST of JSON.

use std::sync::Arc;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use super::{
    AuthError, AuthFuture, AuthRequest, Authenticator, Identity, rfc3339,
    web::{Answer, Web},
};

/// Asks `auth.endpoint`, on the runtime that owns the connections.
pub(super) struct Http {
    web: Arc<Web>,
    handle: Handle,
}

#[derive(Serialize)]
struct Question<'a> {
    credential: &'a str,
    remote_address: &'a str,
}

/// Other fields may come.
#[derive(Deserialize)]
struct Told {
    uid: String,
    expires_at: Option<String>,
}

impl Http {
    pub(super) fn new(web: Arc<Web>, handle: Handle) -> Self {
        Self { web, handle }
    }
}

impl Authenticator for Http {
    fn authenticate<'a>(&'a self, request: AuthRequest<'a>) -> AuthFuture<'a> {
        let question = Question { credential: request.credential, remote_address: request.remote_address };
        let json = serde_json::to_vec(&question).expect("two texts can be written as JSON");
        let web = Arc::clone(&self.web);
        let call = AbortOnDropHandle::new(self.handle.spawn(async move { web.post(json).await }));
        Box::pin(async move {
            let answer = call.await.map_err(|_| AuthError::Unavailable("the gateway stops".into()))?;
            read(&answer.map_err(AuthError::Unavailable)?)
        })
    }
}

fn read(answer: &Answer) -> Result<Identity, AuthError> {
    let unavailable = |why: String| Err(AuthError::Unavailable(why));
    match answer.status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(AuthError::Refused),
        other => return unavailable(format!("auth.endpoint answers {}", other.as_u16())),
    }
    // What is wrong with it may quote it.
    let Ok(Told { uid, expires_at }) = serde_json::from_slice(&answer.body) else {
        return unavailable("auth.endpoint answers 200 with something else than {\"uid\":…}".into());
    };
    let identity = Identity::new(uid);
    match expires_at.as_deref().map(rfc3339::parse) {
        None => Ok(identity),
        Some(Some(end)) => Ok(identity.expires_at(end)),
        Some(None) => unavailable("auth.endpoint answers with an expires_at that isn't RFC 3339".into()),
    }
}
