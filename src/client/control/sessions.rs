//! The connections of a gateway, one after the other.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    vec,
};

use futures_util::{Stream, StreamExt};
use tonic::Streaming;

use crate::{
    client::{CallError, answer::Session},
    proto,
};

/// What [`Control::sessions`](super::Control::sessions) lists, as a `Stream`. It holds at most one message of the gateway,
/// 1,000 of them. Ends after the last, or after an error. Dropping it ends the call.
#[derive(Debug)]
pub struct Sessions {
    page: vec::IntoIter<proto::Session>,
    /// None: it has ended.
    call: Option<Streaming<proto::ListSessionsResponse>>,
}

impl Sessions {
    pub(super) fn new(call: Streaming<proto::ListSessionsResponse>) -> Self {
        Self { page: Vec::new().into_iter(), call: Some(call) }
    }
}

impl Stream for Sessions {
    type Item = Result<Session, CallError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(session) = self.page.next() {
                return Poll::Ready(Some(Ok(session.into())));
            }
            let Some(call) = &mut self.call else { return Poll::Ready(None) };
            match ready!(call.poll_next_unpin(cx)) {
                Some(Ok(response)) => self.page = response.sessions.into_iter(),
                Some(Err(status)) => {
                    self.call = None;
                    return Poll::Ready(Some(Err(status.into())));
                }
                None => self.call = None,
            }
        }
    }
}
