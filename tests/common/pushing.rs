//! An open PushStream.

use std::collections::VecDeque;

use futures_util::stream;
use plex::proto::{PushRequest, PushResponse, PushStreamRequest, PushStreamResponse};
use prost::Message as _;
use tokio::{sync::mpsc, time::timeout};
use tonic::{IntoStreamingRequest, Request, Status, Streaming};

use super::{Backend, PATIENCE};

/// Both sides of a PushStream.
pub struct Pushing {
    /// None: this side is closed.
    send: Option<mpsc::Sender<PushStreamRequest>>,
    results: Streaming<PushStreamResponse>,
    waiting: VecDeque<PushResponse>,
}

impl Pushing {
    pub async fn open(backend: &mut Backend) -> Self {
        Self::with(backend, |_| {}).await
    }

    /// A stream whose call is changed first.
    pub async fn with<F>(backend: &mut Backend, change: F) -> Self
    where
        F: FnOnce(&mut Request<()>),
    {
        let (send, batches) = mpsc::channel(1);
        let batches =
            stream::unfold(batches, |mut batches| async { batches.recv().await.map(|batch| (batch, batches)) });
        let mut bare = Request::new(());
        change(&mut bare);
        let mut request = batches.into_streaming_request();
        *request.metadata_mut() = bare.metadata().clone();
        let results = backend.push_stream(request).await.expect("the stream is opened").into_inner();
        Self { send: Some(send), results, waiting: VecDeque::new() }
    }

    /// Sends one message.
    pub async fn send(&mut self, pushes: Vec<PushRequest>) {
        let send = self.send.as_ref().expect("this side is open");
        let sent = timeout(PATIENCE, send.send(PushStreamRequest { pushes })).await.expect("the stream is read");
        sent.expect("the stream is open");
    }

    /// Closes this side.
    pub fn close(&mut self) {
        self.send = None;
    }

    /// The next message of results.
    pub async fn batch(&mut self) -> Result<Option<Vec<PushResponse>>, Status> {
        let next = timeout(PATIENCE, self.results.message()).await.expect("results in time")?;
        let Some(message) = next else { return Ok(None) };
        assert!((1..=1_000).contains(&message.results.len()), "{} results", message.results.len());
        assert!(message.encoded_len() <= 1 << 20 || message.results.len() == 1, "{} bytes", message.encoded_len());
        Ok(Some(message.results))
    }

    /// The next result; panics where the stream ends first.
    pub async fn result(&mut self) -> PushResponse {
        loop {
            if let Some(result) = self.waiting.pop_front() {
                return result;
            }
            self.waiting = self.batch().await.expect("the stream goes on").expect("a result before the end").into();
        }
    }

    /// The next results.
    pub async fn results(&mut self, count: usize) -> Vec<PushResponse> {
        let mut results = Vec::with_capacity(count);
        while results.len() < count {
            results.push(self.result().await);
        }
        results
    }

    /// The results up to the end of the stream, and how it ends.
    pub async fn rest(&mut self) -> (Vec<PushResponse>, Result<(), Status>) {
        let mut results: Vec<_> = self.waiting.drain(..).collect();
        loop {
            match self.batch().await {
                Ok(Some(more)) => results.extend(more),
                Ok(None) => return (results, Ok(())),
                Err(status) => return (results, Err(status)),
            }
        }
    }
}
