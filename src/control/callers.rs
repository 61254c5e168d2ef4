//! The door of the service: who may call what.
//!
//! Every call shows a secret (`authorization: Bearer SECRET`), or came over a connection whose certificate stands in for
//! one. A secret that is sent counts alone, be it good or bad. A stream that has begun goes on until its end, also where
//! its secret stops being valid meanwhile.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
};

use super::{
    failures::Failures,
    incoming::{ConnectionInfo, Shown},
    secret::{Caller, Secrets},
};
use crate::{
    config::Scopes,
    telemetry::{Metrics, Unauthorized},
};

/// The scope that each call needs. A call that isn't here doesn't exist: tonic says so to everybody who is known.
const SCOPES: [(&str, Scopes); 11] = [
    ("Push", Scopes::PUSH),
    ("PushStream", Scopes::PUSH),
    ("PushMany", Scopes::PUSH),
    ("Broadcast", Scopes::PUSH),
    ("IsOnline", Scopes::PRESENCE),
    ("OnlineStatus", Scopes::PRESENCE),
    ("GetHost", Scopes::NONE),
    ("GetInfo", Scopes::NONE),
    ("Disconnect", Scopes::ADMIN),
    ("ListSessions", Scopes::ADMIN),
    ("ListNodes", Scopes::ADMIN),
];

/// The calls that tell the log who made them.
const LOGGED: [&str; 2] = ["Broadcast", "Disconnect"];

/// A service that only those enter who may. Cheap to clone.
#[derive(Clone)]
pub(super) struct Guarded<S> {
    service: S,
    secrets: Secrets,
    metrics: Metrics,
    failures: Failures,
}

/// Why a call is refused.
struct Refusal {
    reason: Unauthorized,
    status: Status,
}

impl<S> Guarded<S> {
    pub(super) fn new(service: S, secrets: Secrets, metrics: Metrics, failures: Failures) -> Self {
        Self { service, secrets, metrics, failures }
    }

    /// Whose call this is, where it may be made.
    fn admit<B>(&self, request: &http::Request<B>) -> Result<Caller, Refusal> {
        let shown = request.headers().get(http::header::AUTHORIZATION);
        let caller = match (shown, request.extensions().get::<ConnectionInfo>().map(ConnectionInfo::shown)) {
            (Some(shown), _) => {
                let secret = bearer(shown.as_bytes()).ok_or_else(Refusal::missing)?;
                self.secrets.find(secret).cloned().ok_or_else(Refusal::unknown)?
            }
            (None, Some(Shown::Named(caller))) => caller.clone(),
            (None, Some(Shown::Unnamed)) => return Err(Refusal::certificate()),
            (None, Some(Shown::Nothing) | None) => return Err(Refusal::missing()),
        };
        let needed = scope_of(method(request));
        if caller.scopes().allow(needed) { Ok(caller) } else { Err(Refusal::scope(needed)) }
    }
}

impl Refusal {
    fn missing() -> Self {
        let text = "authorization: `Bearer SECRET` with a secret of control.secrets is needed";
        Self { reason: Unauthorized::Missing, status: Status::unauthenticated(text) }
    }

    fn unknown() -> Self {
        let text = "authorization: this is no secret of control.secrets";
        Self { reason: Unauthorized::Unknown, status: Status::unauthenticated(text) }
    }

    fn certificate() -> Self {
        let text = "authorization: `Bearer SECRET` is needed, as the certificate's name isn't in control.client_names";
        Self { reason: Unauthorized::Certificate, status: Status::unauthenticated(text) }
    }

    fn scope(needed: Scopes) -> Self {
        let scope = needed.names().next().unwrap_or_default();
        let text = format!("authorization: this call needs the scope \"{scope}\"");
        Self { reason: Unauthorized::Scope, status: Status::permission_denied(text) }
    }
}

impl<S, B> Service<http::Request<B>> for Guarded<S>
where
    S: Service<
            http::Request<B>,
            Response = http::Response<Body>,
            Error = Infallible,
            Future = BoxFuture<http::Response<Body>, Infallible>,
        >,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let Refusal { reason, status } = match self.admit(&request) {
            Ok(caller) => {
                if LOGGED.contains(&method(&request)) {
                    request.extensions_mut().insert(caller);
                }
                return self.service.call(request);
            }
            Err(refusal) => refusal,
        };
        self.metrics.unauthorized(reason);
        let peer = request.extensions().get::<ConnectionInfo>().map(ConnectionInfo::peer);
        tracing::debug!(peer = peer.map(tracing::field::display), ?reason, "call refused");
        let slowed = peer.and_then(|peer| self.failures.note(peer.ip()));
        // Its message isn't read: nothing of it is kept while the answer waits.
        drop(request);
        Box::pin(async move {
            if let Some(slowed) = slowed {
                slowed.over().await;
            }
            Ok(status.into_http())
        })
    }
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

/// What stands behind the service's name in the path.
fn method<B>(request: &http::Request<B>) -> &str {
    request.uri().path().rsplit('/').next().unwrap_or_default()
}

fn scope_of(method: &str) -> Scopes {
    SCOPES.iter().find(|(name, _)| *name == method).map_or(Scopes::NONE, |(_, scope)| *scope)
}

/// The secret of an `authorization`.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, secret) = value.split_at_checked(7)?;
    (scheme.eq_ignore_ascii_case(b"bearer ") && !secret.is_empty()).then_some(secret)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use std::time::Duration;

    use tokio::time::Instant;
    use tonic::Code;

    use super::*;
    use crate::{
        config::{ControlSecret, Secret},
        files::FileWatch,
        proto::FILE_DESCRIPTOR_SET,
    };

    /// Answers everything, with OK.
    #[derive(Clone)]
    struct Yes;

    impl Service<http::Request<()>> for Yes {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<Self::Response, Infallible>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<()>) -> Self::Future {
            Box::pin(async { Ok(http::Response::default()) })
        }
    }

    /// A door that knows the secret `good`.
    fn door() -> Guarded<Yes> {
        let known: ControlSecret = Secret::new("good").unwrap().into();
        let (secrets, _) = Secrets::load(&[known], &mut FileWatch::default()).unwrap();
        Guarded::new(Yes, secrets, Metrics::new(), Failures::new())
    }

    /// Calls GetInfo from this address; gives the code and how long the answer took.
    async fn call(door: &Guarded<Yes>, peer: &str, secret: &str) -> (Code, Duration) {
        let info = ConnectionInfo::imagined(peer.parse().unwrap(), Shown::Nothing);
        let request = http::Request::post("http://gateway/plex.v1.Gateway/GetInfo")
            .header("authorization", format!("Bearer {secret}"))
            .extension(info)
            .body(())
            .unwrap();
        let begun = Instant::now();
        let answer = door.clone().call(request).await.unwrap();
        let code = Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code());
        (code, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn who_fails_often_waits_for_its_refusals_and_nobody_else_waits() {
        let door = door();
        let mut waits = Vec::new();
        for _ in 0..14 {
            let (code, wait) = call(&door, "192.0.2.1:1", "wrong").await;
            assert_eq!(code, Code::Unauthenticated);
            waits.push(wait);
        }
        assert!(waits[..5].iter().all(Duration::is_zero), "{waits:?}");
        assert!(waits[5..].windows(2).all(|two| two[0] <= two[1]), "{waits:?}");
        assert!(waits[13] >= Duration::from_secs(2) && waits[13] < Duration::from_secs(3), "{waits:?}");
        // A good call from there, also while a bad one waits; and bad ones of others.
        let (bad, good) = tokio::join!(call(&door, "192.0.2.1:2", "wrong"), call(&door, "192.0.2.1:2", "good"));
        assert!(!bad.1.is_zero());
        assert_eq!(good, (Code::Ok, Duration::ZERO));
        assert_eq!(call(&door, "192.0.2.2:1", "wrong").await, (Code::Unauthenticated, Duration::ZERO));
        for _ in 0..20 {
            assert_eq!(call(&door, "127.0.0.1:1", "wrong").await, (Code::Unauthenticated, Duration::ZERO));
        }
    }

    #[test]
    fn every_call_of_the_service_has_its_scope() {
        let files = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        let services = files.file.iter().flat_map(|file| &file.service);
        let gateway = services.clone().find(|service| service.name() == "Gateway").unwrap();
        let mut names: Vec<_> = gateway.method.iter().map(|method| method.name()).collect();
        let mut known = SCOPES.map(|(name, _)| name);
        names.sort_unstable();
        known.sort_unstable();
        assert_eq!(names, known);
    }

    #[test]
    fn a_bearer_is_a_scheme_in_any_case_one_space_and_something() {
        assert_eq!(bearer(b"Bearer s e"), Some(&b"s e"[..]));
        assert_eq!(bearer(b"bEARER x"), Some(&b"x"[..]));
        for value in [&b""[..], b"Bearer", b"Bearer ", b"Basic x", b"Bearer\tx", b"x"] {
            assert_eq!(bearer(value), None);
        }
    }
}
