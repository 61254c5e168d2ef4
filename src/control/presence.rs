//! IsOnline and OnlineStatus.

use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use tonic::{Request, Status};

use super::{BATCH_MAX, Control, call::StreamEnd, convert, over};
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
        cluster.presence_of(request.uids.iter().map(String::as_str), |presence| {
            let uid = uids.next().expect("one answer for each uid").clone();
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
        Ok(IsOnlineResponse { states, known_since: Some(convert::timestamp(cluster.known_since())) })
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
        let watch = Watch { watcher, end, _open: self.0.metrics.stream_opened() };
        Ok(stream::unfold(Some(watch), next).boxed())
    }
}

struct Watch {
    watcher: Watcher,
    end: StreamEnd,
    _open: StreamOpen,
}

/// Nothing is gathered ahead: a caller that doesn't read falls behind in the ring of changes, and is told so by RESET.
async fn next(watch: Option<Watch>) -> Option<(Result<OnlineStatusResponse, Status>, Option<Watch>)> {
    let mut watch = watch?;
    let Update { events, cursor } = tokio::select! {
        biased;
        () = watch.end.reached() => return Some((Err(over()), None)),
        update = watch.watcher.next() => update,
    };
    debug_assert!(events.len() <= BATCH_MAX);
    let events = events.into_iter().map(convert::event).collect();
    Some((Ok(OnlineStatusResponse { events, cursor }), Some(watch)))
}
