//! IsOnline and OnlineStatus.

use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::time::Instant;
use tonic::{Request, Status};

use super::{
    BATCH_MAX, Control,
    call::{LAST_WORDS, StreamEnd},
    convert, over,
};
use crate::{
    cluster::{Update, Watcher},
    model::Uid,
    proto::{IsOnlineRequest, IsOnlineResponse, OnlineState, OnlineStatusRequest, OnlineStatusResponse},
    telemetry::StreamOpen,
};

impl Control {
    pub(super) fn online_states(&self, request: &IsOnlineRequest) -> Result<IsOnlineResponse, Status> {
        convert::uids(&request.uids, 1)?;
        let cluster = self.0.hub.cluster();
        let mut states = Vec::with_capacity(request.uids.len());
        let mut uids = request.uids.iter();
        // How many connections of this node the log knows of each, where it may not know them yet.
        let mut known_here = Vec::new();
        cluster.presence_of(request.uids.iter().map(String::as_str), |presence| {
            let uid = uids.next().expect("one answer for each uid").clone();
            if cluster.reads_late() {
                known_here.push(presence.map_or(0, |presence| presence.held_by(cluster.name())));
            }
            states.push(match presence {
                None => OnlineState { uid, ..Default::default() },
                Some(presence) => OnlineState {
                    uid,
                    online: true,
                    since: Some(convert::timestamp(presence.since)),
                    node: presence.node.as_str().to_owned(),
                    connections: presence.connections,
                },
            });
        });
        // What this node holds counts at once.
        for (state, known) in states.iter_mut().zip(known_here) {
            let held = self.0.hub.held_here(&state.uid).filter(|(_, connections)| *connections > known);
            let Some((since, connections)) = held else { continue };
            if !state.online {
                state.online = true;
                state.since = Some(convert::timestamp(since));
            }
            state.node = cluster.name().as_str().to_owned();
            state.connections = (state.connections - known + connections).min(self.0.hub.connections_per_uid());
        }
        Ok(IsOnlineResponse { states, known_since: cluster.known_since().map(convert::timestamp) })
    }

    pub(super) fn watch(
        &self,
        request: Request<OnlineStatusRequest>,
    ) -> Result<BoxStream<'static, Result<OnlineStatusResponse, Status>>, Status> {
        let end = StreamEnd::of(self, request.extensions());
        let OnlineStatusRequest { uids, skip_snapshot, resume_after } = request.into_inner();
        convert::uids(&uids, 0)?;
        let uids = uids.iter().map(|uid| Uid::new(uid).expect("it was checked")).collect();
        let watcher = self.0.hub.cluster().watch(uids, skip_snapshot, &resume_after);
        let watch = Watch { watcher, end, last_until: None, _open: self.0.metrics.stream_opened() };
        Ok(stream::unfold(Some(watch), next).boxed())
    }
}

struct Watch {
    watcher: Watcher,
    end: StreamEnd,
    /// Set once the end is reached: until when the rest may be told.
    last_until: Option<Instant>,
    _open: StreamOpen,
}

impl Watch {
    /// None at the end: what happened before it has been told, so that the changes of a drain aren't lost in it.
    async fn next(&mut self) -> Option<Update> {
        tokio::select! {
            biased;
            () = self.end.reached() => {}
            update = self.watcher.next() => return Some(update),
        }
        let until = *self.last_until.get_or_insert_with(|| Instant::now() + LAST_WORDS);
        if Instant::now() < until { self.watcher.rest().await } else { None }
    }
}

/// Nothing is gathered ahead: a caller that doesn't read falls behind in the ring of changes, and is told so by RESET.
async fn next(watch: Option<Watch>) -> Option<(Result<OnlineStatusResponse, Status>, Option<Watch>)> {
    let mut watch = watch?;
    let Some(Update { events, cursor }) = watch.next().await else { return Some((Err(over()), None)) };
    debug_assert!(events.len() <= BATCH_MAX);
    let events = events.into_iter().map(convert::event).collect();
    Some((Ok(OnlineStatusResponse { events, cursor }), Some(watch)))
}
