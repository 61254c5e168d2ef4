//! Control against a gateway that says what it was told to.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
};

use futures_util::{FutureExt, Stream, StreamExt, stream};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

use super::*;
use crate::model::PresenceEvent;
use crate::proto::{
    self, OnlineStatusEvent, OnlineStatusKind, OnlineStatusRequest, OnlineStatusResponse,
    gateway_server::{Gateway, GatewayServer},
};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Default)]
struct Script {
    /// What each OnlineStatus tells before it breaks; when none is left, the call is refused.
    presence: VecDeque<Vec<OnlineStatusResponse>>,
    /// What was asked for.
    asked: Vec<OnlineStatusRequest>,
    /// What every other call answers.
    code: Option<Code>,
    bearers: Vec<Option<String>>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Script>>);

impl Fake {
    fn refuse<T>(&self, request: &Request<impl Sized>) -> Result<T, Status> {
        let mut script = self.0.lock().unwrap();
        let bearer = request.metadata().get("authorization");
        script.bearers.push(bearer.map(|bearer| bearer.to_str().unwrap().to_owned()));
        Err(Status::new(script.code.unwrap_or(Code::Unimplemented), "as told"))
    }
}

#[tonic::async_trait]
impl Gateway for Fake {
    type PushStreamStream = Answers<proto::PushStreamResponse>;
    type OnlineStatusStream = Answers<OnlineStatusResponse>;
    type ListSessionsStream = Answers<proto::ListSessionsResponse>;

    async fn push(&self, request: Request<proto::PushRequest>) -> Result<Response<proto::PushResponse>, Status> {
        self.refuse(&request)
    }

    async fn push_stream(
        &self,
        request: Request<Streaming<proto::PushStreamRequest>>,
    ) -> Result<Response<Self::PushStreamStream>, Status> {
        // One result for each push, its number echoed.
        let results = request.into_inner().map(|batch| {
            let result = |push: proto::PushRequest| proto::PushResponse { id: push.id, ..Default::default() };
            Ok(proto::PushStreamResponse { results: batch?.pushes.into_iter().map(result).collect() })
        });
        Ok(Response::new(results.boxed()))
    }

    async fn push_many(
        &self,
        request: Request<proto::PushManyRequest>,
    ) -> Result<Response<proto::PushManyResponse>, Status> {
        self.refuse(&request)
    }

    async fn broadcast(
        &self,
        request: Request<proto::BroadcastRequest>,
    ) -> Result<Response<proto::BroadcastResponse>, Status> {
        self.refuse(&request)
    }

    async fn is_online(
        &self,
        request: Request<proto::IsOnlineRequest>,
    ) -> Result<Response<proto::IsOnlineResponse>, Status> {
        self.refuse(&request)
    }

    async fn online_status(
        &self,
        request: Request<OnlineStatusRequest>,
    ) -> Result<Response<Self::OnlineStatusStream>, Status> {
        let mut script = self.0.lock().unwrap();
        script.asked.push(request.into_inner());
        let told = script.presence.pop_front().ok_or_else(|| Status::permission_denied("the script is over"))?;
        let told = stream::iter(told.into_iter().map(Ok));
        Ok(Response::new(told.chain(stream::iter([Err(Status::unavailable("draining"))])).boxed()))
    }

    async fn get_host(
        &self,
        request: Request<proto::GetHostRequest>,
    ) -> Result<Response<proto::GetHostResponse>, Status> {
        self.refuse(&request)
    }

    async fn get_info(
        &self,
        request: Request<proto::GetInfoRequest>,
    ) -> Result<Response<proto::GetInfoResponse>, Status> {
        self.refuse(&request)
    }

    async fn disconnect(
        &self,
        request: Request<proto::DisconnectRequest>,
    ) -> Result<Response<proto::DisconnectResponse>, Status> {
        self.refuse(&request)
    }

    async fn list_sessions(
        &self,
        request: Request<proto::ListSessionsRequest>,
    ) -> Result<Response<Self::ListSessionsStream>, Status> {
        self.refuse(&request)
    }

    async fn list_nodes(
        &self,
        request: Request<proto::ListNodesRequest>,
    ) -> Result<Response<proto::ListNodesResponse>, Status> {
        self.refuse(&request)
    }
}

/// A fake that listens until the handle is aborted, and a client with the secret `s`.
async fn serving(fake: &Fake) -> (Control, JoinHandle<Result<(), tonic::transport::Error>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control = Control::connect(&format!("http://{}", listener.local_addr().unwrap()), "s").unwrap();
    let service = GatewayServer::new(fake.clone());
    let serving = Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener));
    (control, tokio::spawn(serving))
}

fn told(kinds: &[OnlineStatusKind], cursor: &str) -> OnlineStatusResponse {
    let event = |&kind: &OnlineStatusKind| OnlineStatusEvent {
        kind: kind.into(),
        uid: "alice".to_owned(),
        ..Default::default()
    };
    OnlineStatusResponse { events: kinds.iter().map(event).collect(), cursor: cursor.to_owned() }
}

fn name(update: &Update) -> String {
    match update {
        Update::Begun { resumed } => format!("begun, resumed {resumed}"),
        Update::Cursor(cursor) => format!("cursor {cursor}"),
        Update::Interrupted { error, .. } => format!("interrupted, {error}"),
        Update::Event(PresenceEvent::Snapshot { .. }) => "snapshot".to_owned(),
        Update::Event(PresenceEvent::Change(_)) => "change".to_owned(),
        Update::Event(PresenceEvent::Live { .. }) => "live".to_owned(),
        Update::Event(PresenceEvent::Reset { .. }) => "reset".to_owned(),
    }
}

#[tokio::test]
async fn what_the_gateway_says_is_told_from_not_reaching_it() {
    let fake = Fake::default();
    let (control, serving) = serving(&fake).await;
    let mut said = Vec::new();
    for code in [
        Code::InvalidArgument,
        Code::Unauthenticated,
        Code::PermissionDenied,
        Code::ResourceExhausted,
        Code::Unavailable,
        Code::Internal,
    ] {
        fake.0.lock().unwrap().code = Some(code);
        said.push(control.push("alice", "/a", "b").await.unwrap_err());
    }
    assert!(
        matches!(
            &said[..],
            [
                CallError::Invalid(_),
                CallError::Refused(_),
                CallError::Refused(_),
                CallError::Exhausted(_),
                CallError::Unavailable(_),
                CallError::Other { code: Code::Internal, .. },
            ]
        ),
        "{said:?}"
    );
    assert!(fake.0.lock().unwrap().bearers.iter().all(|bearer| bearer.as_deref() == Some("Bearer s")));
    serving.abort();
}

#[tokio::test]
async fn a_peer_that_hangs_up_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control = Control::connect(&format!("http://{}", listener.local_addr().unwrap()), "s").unwrap();
    let hanging_up = tokio::spawn(async move {
        loop {
            drop(listener.accept().await);
        }
    });
    let error = control.info().await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable(_)), "{error:?}");
    hanging_up.abort();
}

#[tokio::test]
async fn a_stream_of_pushes_is_answered_while_it_is_written() {
    let (control, serving) = serving(&Fake::default()).await;
    let (pushes, mut outcomes) = control.push_stream(10).await.unwrap();
    for id in [1, 2] {
        pushes.send(PushRequest { id, ..PushRequest::default() }).await.unwrap();
        assert_eq!(outcomes.next().await.unwrap().unwrap().id, id);
    }
    drop(pushes);
    assert!(outcomes.next().await.is_none());
    serving.abort();
}

#[tokio::test]
async fn a_follower_comes_back_with_its_cursor_and_without_after_a_reset() {
    use OnlineStatusKind::{Change, Live, Reset, Snapshot};
    let fake = Fake::default();
    fake.0.lock().unwrap().presence = VecDeque::from([
        // Breaks within the snapshot: nothing to resume.
        vec![told(&[Snapshot], "")],
        vec![told(&[Snapshot], ""), told(&[Live], "a"), told(&[Change], "b")],
        vec![told(&[Live], "b"), told(&[], "c")],
        vec![told(&[Reset], ""), told(&[Snapshot], "")],
        vec![told(&[Live], "d")],
    ]);
    let (control, serving) = serving(&fake).await;
    let mut follower = control.follow(["alice"]);
    let mut updates = Vec::new();
    let end = loop {
        match follower.next().await.expect("it ends with an error") {
            Ok(update) => updates.push(name(&update)),
            Err(error) => break error,
        }
    };
    assert!(matches!(end, CallError::Refused(_)), "{end:?}");
    assert!(follower.next().await.is_none());
    let broken = "interrupted, unavailable: draining";
    assert_eq!(
        updates,
        [
            &["begun, resumed false", "snapshot", broken][..],
            &["begun, resumed false", "snapshot", "live", "cursor a", "change", "cursor b", broken],
            &["begun, resumed true", "live", "cursor c", broken],
            &["begun, resumed true", "reset", "snapshot", broken],
            &["begun, resumed false", "live", "cursor d", broken],
        ]
        .concat()
    );
    let asked = |resume_after: &str| OnlineStatusRequest {
        uids: vec!["alice".to_owned()],
        skip_snapshot: false,
        resume_after: resume_after.to_owned(),
    };
    assert_eq!(fake.0.lock().unwrap().asked, ["", "", "b", "c", "", "d"].map(asked));
    serving.abort();
}

#[tokio::test]
async fn a_stream_of_pushes_waits_when_its_window_is_full() {
    let (control, serving) = serving(&Fake::default()).await;
    let (pushes, mut outcomes) = control.push_stream(3).await.unwrap();
    let push = |id| PushRequest { id, ..PushRequest::default() };
    for id in 1..=3 {
        pushes.send(push(id)).await.unwrap();
    }
    // However often it is asked for, and given up.
    for _ in 0..10 {
        assert!(pushes.send(push(99)).now_or_never().is_none());
    }
    assert_eq!(outcomes.next().await.unwrap().unwrap().id, 1);
    pushes.send(push(4)).await.unwrap();
    // All four are with the gateway by now, and one more would be over the window all the same.
    assert!(pushes.send(push(99)).now_or_never().is_none());
    drop(pushes);
    let ids: Vec<_> = outcomes.map(|outcome| outcome.unwrap().id).collect().await;
    assert_eq!(ids, [2, 3, 4], "what was given up was not sent");
    serving.abort();
}

#[tokio::test]
async fn whoever_pushes_into_a_stream_that_has_ended_is_told() {
    let (control, serving) = serving(&Fake::default()).await;
    let (pushes, outcomes) = control.push_stream(1).await.unwrap();
    pushes.send(PushRequest::default()).await.unwrap();
    let waiting = tokio::spawn({
        let pushes = pushes.clone();
        async move { pushes.send(PushRequest::default()).await }
    });
    tokio::task::yield_now().await;
    drop(outcomes);
    assert!(matches!(waiting.await.unwrap(), Err(CallError::Unreachable(_))));
    let long = PushRequest::new("alice", "/x", "x".repeat(4 << 20));
    assert!(matches!(pushes.send(long).await, Err(CallError::Invalid(why)) if why.contains("body")));
    serving.abort();
}

#[tokio::test]
async fn waits_begin_anew_once_the_gateway_has_spoken() {
    let fake = Fake::default();
    // Six that break at once, one that speaks first, one more.
    let mut presence = vec![Vec::new(); 6];
    presence.extend([vec![told(&[OnlineStatusKind::Live], "a")], Vec::new()]);
    fake.0.lock().unwrap().presence = presence.into();
    let (control, serving) = serving(&fake).await;
    let mut updates = control.follow(["alice"]);
    let mut waits = Vec::new();
    while let Some(Ok(update)) = updates.next().await {
        if let Update::Interrupted { retry_in, .. } = update {
            waits.push(retry_in.as_millis());
        }
    }
    let within = |wait: u128, most: u128| (most / 2..=most).contains(&wait);
    let most = [100, 200, 400, 800, 1_600, 3_200, 100, 200];
    assert!(waits.len() == 8 && waits.iter().zip(most).all(|(&wait, most)| within(wait, most)), "{waits:?}");
    serving.abort();
}
