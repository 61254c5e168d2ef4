//! Push, PushMany, Broadcast.

use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{Control, call, convert};
use crate::{
    cluster::sooner,
    hub::Ack,
    model::PushOutcome,
    proto::{BroadcastRequest, BroadcastResponse, PushManyRequest, PushManyResponse, PushRequest, PushResponse},
};

impl Control {
    pub(super) async fn push_one(&self, request: Request<PushRequest>) -> Result<Response<PushResponse>, Status> {
        let deadline = call::deadline(request.metadata());
        let request = request.into_inner();
        convert::uid("uid", &request.uid)?;
        let push = self.0.checks.push(&request.uri, &request.body)?;
        let ack = match convert::ack_timeout(request.ack_timeout)? {
            None => None,
            Some(timeout) => {
                let permit = self.0.hub.ack_waits().clone().try_acquire_owned().map_err(|_| {
                    Status::resource_exhausted("control.ack_waits pushes wait for an answer already: nothing was sent")
                })?;
                Some(Ack { deadline: ack_deadline(timeout, deadline), permit: Some(permit) })
            }
        };
        let outcome = self.0.hub.push(&request.uid, push, ack, deadline).outcome().await;
        self.0.metrics.pushed(outcome.status);
        Ok(Response::new(convert::push_response(outcome, request.id)))
    }

    pub(super) async fn push_to_many(
        &self,
        request: Request<PushManyRequest>,
    ) -> Result<Response<PushManyResponse>, Status> {
        let deadline = call::deadline(request.metadata());
        let PushManyRequest { uids, uri, body } = request.into_inner();
        convert::uids(&uids, 1)?;
        self.0.checks.push(&uri, &body)?;
        // Runs to its end, whatever becomes of the call.
        let control = self.clone();
        let pushing = tokio::spawn(async move {
            let push = crate::model::Push { uri: &uri, body: &body };
            let outcomes = control.0.hub.push_many(&uids, push, deadline).await;
            let respond = |outcome: PushOutcome| {
                control.0.metrics.pushed(outcome.status);
                convert::push_response(outcome, 0)
            };
            PushManyResponse { results: outcomes.into_iter().map(respond).collect() }
        });
        pushing.await.map(Response::new).map_err(|_| Status::internal("the push was cut short"))
    }

    pub(super) async fn push_to_all(
        &self,
        request: Request<BroadcastRequest>,
    ) -> Result<Response<BroadcastResponse>, Status> {
        let (caller, deadline) = (super::caller(&request), call::deadline(request.metadata()));
        let BroadcastRequest { uri, body } = request.into_inner();
        self.0.checks.push(&uri, &body)?;
        let control = self.clone();
        let pushing = tokio::spawn(async move {
            let done = control.0.hub.broadcast(crate::model::Push { uri: &uri, body: &body }, deadline).await;
            tracing::info!(
                caller = caller.map(tracing::field::display),
                uri,
                bytes = body.len(),
                sent = done.sent,
                queue_full = done.queue_full,
                "Broadcast"
            );
            let silent_nodes = done.silent.iter().map(|node| node.as_str().to_owned()).collect();
            BroadcastResponse { sent: done.sent, queue_full: done.queue_full, silent_nodes }
        });
        pushing.await.map(Response::new).map_err(|_| Status::internal("the broadcast was cut short"))
    }
}

/// A wait ends at the sooner of `ack_timeout` and the call's deadline.
pub(super) fn ack_deadline(timeout: std::time::Duration, deadline: Option<Instant>) -> Instant {
    sooner(Instant::now() + timeout, deadline)
}
