//! Many pushes over one call: where they go in, and where their outcomes come out.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    vec,
};

use futures_util::{Stream, StreamExt, stream};
use prost::Message;
use tokio::sync::{Semaphore, mpsc};
use tonic::Streaming;

use super::{MESSAGE_BYTES_MAX, RawClient};
use crate::{
    client::{
        CallError,
        answer::{PushOutcome, PushRequest},
    },
    proto,
};

/// The most pushes that the gateway takes in a message.
const BATCH_MAX: usize = 1_000;

/// A message is closed once it has so many bytes: far below its limit, and large enough that its head costs nothing.
const BATCH_BYTES: usize = 1 << 20;

/// The longest push, in bytes as encoded: alone in its message.
const PUSH_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 16;

/// Where pushes go in. Clones share one window; when the last is dropped, the call ends after the last outcome.
#[derive(Debug, Clone)]
pub struct PushSink {
    pushes: mpsc::Sender<proto::PushRequest>,
    room: Arc<Semaphore>,
}

/// An outcome for each push, as a `Stream`; [`PushOutcome::id`] tells whose it is. Those of pushes without `ack_timeout`
/// come in the order of the pushes. Ends after the last outcome, or after an error: pushes that have none by then may
/// have been sent or not. Dropping it ends the call, and whoever waits in [`PushSink::send`].
#[derive(Debug)]
pub struct PushOutcomes {
    batch: vec::IntoIter<proto::PushResponse>,
    /// None: it has ended.
    call: Option<Streaming<proto::PushStreamResponse>>,
    room: Arc<Semaphore>,
}

/// Begins the call.
pub(super) async fn begin(mut client: RawClient, window: usize) -> Result<(PushSink, PushOutcomes), CallError> {
    let window = window.clamp(1, Semaphore::MAX_PERMITS);
    let room = Arc::new(Semaphore::new(window));
    let (pushes, taken) = mpsc::channel(window.min(BATCH_MAX));
    let call = client.push_stream(batches(taken)).await?.into_inner();
    let sink = PushSink { pushes, room: Arc::clone(&room) };
    Ok((sink, PushOutcomes { batch: Vec::new().into_iter(), call: Some(call), room }))
}

/// Gathers what is there into messages, and waits for no more.
fn batches(pushes: mpsc::Receiver<proto::PushRequest>) -> impl Stream<Item = proto::PushStreamRequest> + Send {
    stream::unfold((pushes, None), |(mut pushes, left)| async {
        let first = match left {
            Some(push) => push,
            None => pushes.recv().await?,
        };
        let (mut bytes, mut batch, mut left) = (first.encoded_len(), vec![first], None);
        while batch.len() < BATCH_MAX
            && let Ok(push) = pushes.try_recv()
        {
            bytes += push.encoded_len();
            if bytes > BATCH_BYTES {
                left = Some(push);
                break;
            }
            batch.push(push);
        }
        Some((proto::PushStreamRequest { pushes: batch }, (pushes, left)))
    })
}

impl PushSink {
    /// Sends one push; waits while as many as the window allows are without an outcome.
    ///
    /// Cancel-safe: a push whose `send` is dropped before it returns was not sent.
    ///
    /// # Errors
    ///
    /// [`CallError::Invalid`] for a push that is too long for any message (4 MiB); [`CallError::Unreachable`] where the
    /// call has ended, and [`PushOutcomes`] tells why. Nothing was sent.
    pub async fn send(&self, push: PushRequest) -> Result<(), CallError> {
        let push = proto::PushRequest::from(push);
        let bytes = push.encoded_len();
        if bytes > PUSH_BYTES_MAX {
            return Err(CallError::Invalid(format!(
                "body: a push of {bytes} bytes, at most {PUSH_BYTES_MAX} can be sent"
            )));
        }
        let ended = || CallError::Unreachable("the stream of pushes has ended".to_owned());
        let room = self.room.acquire().await.map_err(|_| ended())?;
        let place = self.pushes.reserve().await.map_err(|_| ended())?;
        // Given back with its outcome.
        room.forget();
        place.send(push);
        Ok(())
    }
}

impl Stream for PushOutcomes {
    type Item = Result<PushOutcome, CallError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(outcome) = self.batch.next() {
                self.room.add_permits(1);
                return Poll::Ready(Some(Ok(outcome.into())));
            }
            let Some(call) = &mut self.call else { return Poll::Ready(None) };
            let ended = match ready!(call.poll_next_unpin(cx)) {
                Some(Ok(response)) => {
                    self.batch = response.results.into_iter();
                    continue;
                }
                Some(Err(status)) => Some(Err(status.into())),
                None => None,
            };
            self.call = None;
            self.room.close();
            return Poll::Ready(ended);
        }
    }
}

impl Drop for PushOutcomes {
    fn drop(&mut self) {
        self.room.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(id: u64, body_bytes: usize) -> proto::PushRequest {
        proto::PushRequest { id, body: "x".repeat(body_bytes), ..Default::default() }
    }

    #[tokio::test]
    async fn messages_are_bounded_in_pushes_and_in_bytes() {
        let (pushes, taken) = mpsc::channel(4_000);
        for id in 0..2_500 {
            pushes.try_send(push(id, 1)).unwrap();
        }
        for id in 2_500..2_520 {
            pushes.try_send(push(id, 400 << 10)).unwrap();
        }
        pushes.try_send(push(2_520, 3 << 20)).unwrap();
        drop(pushes);
        let batches: Vec<_> = batches(taken).collect().await;
        assert_eq!(batches.iter().map(|batch| batch.pushes.len()).take(3).collect::<Vec<_>>(), [1_000, 1_000, 502]);
        for batch in &batches {
            assert!(batch.pushes.len() == 1 || batch.encoded_len() < BATCH_BYTES + 100, "{}", batch.encoded_len());
            assert!(batch.encoded_len() < MESSAGE_BYTES_MAX);
        }
        let ids = batches.iter().flat_map(|batch| batch.pushes.iter().map(|push| push.id));
        assert_eq!(ids.collect::<Vec<_>>(), (0..=2_520).collect::<Vec<_>>());
    }
}
