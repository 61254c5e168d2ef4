//! ListSessions.

use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use tonic::{Request, Status};

use super::{
    Control,
    call::{self, StreamEnd},
    convert, over,
};
use crate::proto::{ListSessionsRequest, ListSessionsResponse};

impl Control {
    pub(super) fn sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<BoxStream<'static, Result<ListSessionsResponse, Status>>, Status> {
        let (end, deadline) = (StreamEnd::of(self, request.extensions()), call::deadline(request.metadata()));
        let uid = request.into_inner().uid;
        if !uid.is_empty() {
            convert::uid("uid", &uid)?;
        }
        let pages = self.0.hub.sessions((!uid.is_empty()).then_some(uid), deadline);
        let pages = stream::unfold(Some((pages, end)), |state| async move {
            let (mut pages, end) = state?;
            let page = tokio::select! {
                biased;
                () = end.reached() => return Some((Err(over()), None)),
                page = pages.next() => page?,
            };
            let sessions = page.into_iter().map(convert::session).collect();
            Some((Ok(ListSessionsResponse { sessions }), Some((pages, end))))
        });
        Ok(pages.boxed())
    }
}
