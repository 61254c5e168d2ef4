//! What stands beside the service on its port: health and reflection. Their streams end as those of the gateway do, so
//! that none of them holds up the end of the node, or of its connection.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    Router,
    body::{Body, HttpBody},
    extract::{Request, State},
    http::HeaderMap,
    middleware::{Next, from_fn_with_state},
    response::Response,
};
use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use hyper::body::Frame;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, service::Routes};
use tonic_health::pb::health_server::{Health, HealthServer};

use super::{Control, call::StreamEnd, over};
use crate::proto::FILE_DESCRIPTOR_SET;

/// Health and reflection.
pub(super) fn routes<H: Health>(control: Control, health: HealthServer<H>) -> Router {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the compiled descriptors are whole");
    let routes = Routes::new(health).add_service(reflection).into_axum_router();
    routes.layer(from_fn_with_state(control, ending))
}

async fn ending(State(control): State<Control>, request: Request, next: Next) -> Response {
    let end = StreamEnd::of(&control, request.extensions());
    let told = CancellationToken::new();
    let asked = told.clone().cancelled_owned().boxed();
    let request = request.map(|body| Body::new(Ending { body, end: Some(asked), last: None }));
    let last = Some((over(), told.drop_guard()));
    let end = async move { end.reached().await }.boxed();
    next.run(request).await.map(|body| Body::new(Ending { body, end: Some(end), last }))
}

/// The body of a response: where it still waits for something to tell at the end of streams, it ends. Or of a request,
/// which ends after it: who reads it would wait, and hold the connection.
struct Ending {
    body: Body,
    /// None: that was reached.
    end: Option<BoxFuture<'static, ()>>,
    /// What a response ends with then, and what ends the request.
    last: Option<(Status, DropGuard)>,
}

impl HttpBody for Ending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, end, last } = &mut *self;
        let Some(reached) = end else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        ready!(reached.as_mut().poll(cx));
        *end = None;
        Poll::Ready(last.take().map(|(status, _)| {
            let mut trailers = HeaderMap::new();
            // Fails only for a text that is no header's value.
            let _ = status.add_header(&mut trailers);
            Ok(Frame::trailers(trailers))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.end.is_none() || self.body.is_end_stream()
    }
}
