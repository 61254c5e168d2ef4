//! What a PushStream promises: order, windows, and how it ends.

mod common;

use common::{
    TestServer, call, push,
    pushing::Pushing,
    watch::{Watch, everyone},
};
use plex::proto::{PushRequest, PushResponse, PushStatus};
use std::time::Duration;
use tonic::Code;

const LONG: Duration = Duration::from_secs(60);

fn numbered(id: u64, request: PushRequest) -> PushRequest {
    PushRequest { id, ..request }
}

fn ids(results: &[PushResponse]) -> Vec<u64> {
    results.iter().map(|result| result.id).collect()
}

#[tokio::test]
async fn results_come_in_the_order_of_the_pushes_however_they_were_batched() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let mut pushing = Pushing::open(&mut server.backend().await).await;
    let mut id = 0;
    for batch in [1, 7, 0, 300, 1, 2] {
        let mut pushes = Vec::new();
        for _ in 0..batch {
            id += 1;
            let uid = if id % 3 == 0 { "nobody" } else { "alice" };
            pushes.push(numbered(id, push(uid, "/n", &id.to_string())));
        }
        pushing.send(pushes).await;
    }
    pushing.close();
    let (results, end) = pushing.rest().await;
    end.expect("OK after the last result");
    assert_eq!(ids(&results), (1..=id).collect::<Vec<_>>());
    let mut last = 0;
    for result in results {
        if result.id % 3 == 0 {
            assert_eq!((result.status(), result.seq, result.connections), (PushStatus::Offline, 0, 0));
            continue;
        }
        assert_eq!((result.status(), result.connections), (PushStatus::Sent, 1));
        assert!(result.seq > last);
        last = result.seq;
        let message = device.next().await;
        assert_eq!((message.seq, message.body), (result.seq, result.id.to_string()));
    }
}

#[tokio::test]
async fn a_bad_item_is_answered_in_its_place_and_the_stream_goes_on() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let mut pushing = Pushing::open(&mut server.backend().await).await;
    let bad = [
        (push("", "/x", ""), "uid"),
        (push(&"u".repeat(256), "/x", ""), "uid"),
        (push("alice", "", ""), "uri"),
        (push("alice", "/heartbeat", ""), "uri"),
        (push("alice", "/x", &"x".repeat(70_000)), "body"),
        (call("alice", "/x", "", Duration::ZERO), "ack_timeout"),
        (call("alice", "/x", "", Duration::from_secs(301)), "ack_timeout"),
    ];
    let mut batch = Vec::new();
    for (id, (request, _)) in (1..).zip(&bad) {
        batch.push(numbered(id, request.clone()));
        batch.push(numbered(100 + id, push("alice", "/good", "")));
    }
    pushing.send(batch).await;
    for (id, (_, field)) in (1..).zip(&bad) {
        let result = pushing.result().await;
        assert_eq!((result.status(), result.id, result.seq), (PushStatus::Invalid, id, 0));
        assert!(result.error.starts_with(field), "{result:?}");
        let result = pushing.result().await;
        assert_eq!((result.status(), result.id, &*result.error), (PushStatus::Sent, 100 + id, ""));
        assert_eq!(device.next().await.seq, result.seq);
    }
    device.expect_quiet().await;
}

#[tokio::test]
async fn results_come_a_thousand_to_a_message_at_most() {
    let server = TestServer::start().await;
    let mut pushing = Pushing::open(&mut server.backend().await).await;
    for _ in 0..8 {
        pushing.send(vec![push("nobody", "/x", ""); 1_000]).await;
    }
    pushing.close();
    let (results, end) = pushing.rest().await;
    assert_eq!((results.len(), end.is_ok()), (8_000, true));
}

#[tokio::test]
async fn a_single_push_has_its_result_though_nothing_else_comes() {
    let server = TestServer::start().await;
    let mut pushing = Pushing::open(&mut server.backend().await).await;
    for id in 1..=20 {
        pushing.send(vec![numbered(id, push("nobody", "/x", ""))]).await;
        assert_eq!(pushing.result().await.id, id);
    }
}

#[tokio::test]
async fn of_an_overlong_message_nothing_is_pushed_and_every_push_before_it_has_its_result() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let mut pushing = Pushing::open(&mut server.backend().await).await;
    pushing.send(vec![numbered(1, call("alice", "/ask", "", LONG)), numbered(2, push("alice", "/x", ""))]).await;
    pushing.send(vec![numbered(3, push("", "/x", "")), numbered(4, push("nobody", "/x", ""))]).await;
    pushing.send(vec![push("alice", "/overlong", ""); 1_001]).await;
    let (results, end) = pushing.rest().await;
    assert_eq!(ids(&results), [2, 3, 4]);
    let status = end.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().starts_with("pushes") && status.message().contains("1000"), "{status}");
    device.next().await;
    device.next().await;
    device.expect_quiet().await;
    // The wait that nobody is told of any more gives its place up.
    server.metric_is("plex_ack_waits", 0).await;
}

#[tokio::test]
async fn a_message_over_4_mib_ends_the_stream_out_of_range_after_the_results_before_it() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let mut pushing = Pushing::open(&mut server.backend().await).await;
    pushing.send(vec![numbered(1, push("nobody", "/x", "")), numbered(2, call("alice", "/ask", "", LONG))]).await;
    let too_large = "x".repeat(4 << 20);
    pushing.send(vec![numbered(3, push("alice", "/x", "")), numbered(4, push("alice", "/x", &too_large))]).await;
    let (results, end) = pushing.rest().await;
    assert_eq!((ids(&results), results[0].status()), (vec![1], PushStatus::Offline));
    let status = end.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert_eq!(device.next().await.uri, "/ask");
    device.expect_quiet().await;
}

#[tokio::test]
async fn a_result_with_ack_timeout_comes_when_it_is_known_and_holds_up_no_other() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let mut pushing = Pushing::open(&mut server.backend().await).await;
    for id in 1..=3 {
        pushing.send(vec![numbered(id, call("alice", "/ask", "", LONG))]).await;
    }
    pushing.send(vec![numbered(4, push("alice", "/x", "")), numbered(5, push("nobody", "/x", ""))]).await;
    assert_eq!(ids(&pushing.results(2).await), [4, 5]);
    let mut messages = Vec::new();
    for _ in 0..4 {
        messages.push(device.next().await);
    }
    device.nack(messages[2].seq, "three").await;
    let result = pushing.result().await;
    assert_eq!((result.id, result.status(), &*result.reply), (3, PushStatus::Nacked, "three"));
    device.ack(messages[0].seq, "one").await;
    let result = pushing.result().await;
    assert_eq!((result.id, result.status(), &*result.reply), (1, PushStatus::Acked, "one"));
    drop(device);
    let result = pushing.result().await;
    assert_eq!((result.id, result.status()), (2, PushStatus::ConnectionLost));
}

#[tokio::test]
async fn when_the_caller_closes_its_side_the_stream_ends_after_the_last_open_wait() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let mut pushing = Pushing::open(&mut server.backend().await).await;
    pushing.send(vec![numbered(1, call("alice", "/ask", "", LONG)), numbered(2, push("nobody", "/x", ""))]).await;
    pushing.close();
    assert_eq!(pushing.result().await.id, 2);
    let seq = device.next().await.seq;
    device.ack(seq, "late, but in time").await;
    let (results, end) = pushing.rest().await;
    end.unwrap();
    assert_eq!((results.len(), results[0].id, results[0].status()), (1, 1, PushStatus::Acked));
}

#[tokio::test]
async fn an_empty_stream_ends_with_ok() {
    let server = TestServer::start().await;
    let mut pushing = Pushing::open(&mut server.backend().await).await;
    pushing.send(Vec::new()).await;
    pushing.close();
    let (results, end) = pushing.rest().await;
    assert_eq!((results.len(), end.is_ok()), (0, true));
}

#[tokio::test]
async fn pushes_of_one_stream_reach_a_device_in_their_order() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let mut pushing = Pushing::open(&mut server.backend().await).await;
    // Filler, so that it takes both ways: the socket, and the queue.
    let filler = "x".repeat(2_000);
    let mut taken = 0;
    for batch in 0..20 {
        let pushes = (0..50).map(|n| numbered(batch * 50 + n, push("alice", &(batch * 50 + n).to_string(), &filler)));
        pushing.send(pushes.collect()).await;
        for result in pushing.results(50).await {
            // A full queue drops some, and changes the order of none.
            if result.status() == PushStatus::Sent {
                let message = device.next().await;
                assert_eq!((message.uri, message.seq), (result.id.to_string(), result.seq));
                taken += 1;
            }
        }
    }
    assert!(taken > 20, "{taken}");
}

#[tokio::test]
async fn over_the_window_the_stream_is_not_read_on_pushes_counted_one_by_one() {
    let server = TestServer::with(|config| config.control.stream_window = 3).await;
    let mut device = server.login("alice").await;
    let mut pushing = Pushing::open(&mut server.backend().await).await;
    let batch = (1..=6).map(|id| numbered(id, call("alice", "/ask", "", LONG)));
    pushing.send(batch.collect()).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(device.next().await.seq);
    }
    device.expect_quiet().await;
    for _ in 0..3 {
        device.ack(open.remove(1), "").await;
        assert_eq!(pushing.result().await.status(), PushStatus::Acked);
        // Exactly one more.
        open.push(device.next().await.seq);
        device.expect_quiet().await;
    }
    pushing.close();
    for seq in open {
        device.ack(seq, "").await;
    }
    let (results, end) = pushing.rest().await;
    assert_eq!((results.len(), end.is_ok()), (3, true));
}

#[tokio::test]
async fn over_ack_waits_a_stream_is_not_read_on() {
    let server = TestServer::with(|config| config.control.ack_waits = 1).await;
    let mut device = server.login("alice").await;
    let mut backend = server.backend().await;
    let (mut holds, mut waits) = (Pushing::open(&mut backend).await, Pushing::open(&mut backend).await);
    holds.send(vec![call("alice", "/first", "", LONG)]).await;
    let first = device.next().await;
    let batch = vec![numbered(1, call("alice", "/second", "", LONG)), numbered(2, push("alice", "/third", ""))];
    waits.send(batch).await;
    device.expect_quiet().await;
    device.ack(first.seq, "").await;
    assert_eq!(holds.result().await.status(), PushStatus::Acked);
    let second = device.next().await;
    assert_eq!((&*second.uri, &*device.next().await.uri), ("/second", "/third"));
    assert_eq!(waits.result().await.id, 2);
    device.ack(second.seq, "").await;
    assert_eq!((waits.result().await.id, server.metric("plex_ack_waits").await), (1, 0));
}

#[tokio::test]
async fn a_caller_that_goes_takes_nothing_back_and_its_waits_give_their_places_up() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let mut pushing = Pushing::open(&mut server.backend().await).await;
    pushing.send(vec![call("alice", "/ask", "1", LONG), call("alice", "/ask", "2", LONG)]).await;
    device.next().await;
    drop(pushing);
    assert_eq!(device.next().await.body, "2");
    server.metric_is("plex_ack_waits", 0).await;
    server.metric_is("plex_control_streams_ended_total", 1).await;
}

#[tokio::test]
async fn a_wait_ends_before_the_deadline_of_its_stream() {
    let server = TestServer::start().await;
    let _device = server.login("alice").await;
    let mut backend = server.backend().await;
    let mut pushing = Pushing::with(&mut backend, |call| call.set_timeout(Duration::from_secs(2))).await;
    pushing.send(vec![call("alice", "/ask", "", LONG)]).await;
    assert_eq!(pushing.result().await.status(), PushStatus::AckTimeout);
}

#[tokio::test]
async fn a_message_of_results_has_at_most_a_mebibyte_and_a_larger_result_comes_alone() {
    let server = TestServer::with(|config| {
        config.device.max_frame = 4 << 20;
        config.device.queue_bytes = 8 << 20;
    })
    .await;
    let mut device = server.login("alice").await;
    let mut pushing = Pushing::open(&mut server.backend().await).await;
    // Nobody reads the results meanwhile, so they gather.
    let sizes = [60_000, 1_500_000, 100, 700_000, 700_000, 1_200_000];
    let sizes: Vec<usize> = sizes.into_iter().chain([60_000; 60]).collect();
    pushing.send(vec![call("alice", "/ask", "", LONG); sizes.len()]).await;
    for size in &sizes {
        let seq = device.next().await.seq;
        device.ack(seq, &"r".repeat(*size)).await;
    }
    server.metric_is("plex_ack_waits", 0).await;
    pushing.close();
    // The size of each message is checked by the stream's helper.
    let (results, end) = pushing.rest().await;
    end.unwrap();
    let mut lengths: Vec<_> = results.iter().map(|result| result.reply.len()).collect();
    let mut expected = sizes.clone();
    lengths.sort_unstable();
    expected.sort_unstable();
    assert_eq!(lengths, expected);
}

#[tokio::test]
async fn at_the_end_of_the_drain_a_stream_ends_unavailable_after_its_results() {
    let mut server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let mut pushing = Pushing::open(&mut server.backend().await).await;
    pushing.send(vec![numbered(1, call("alice", "/ask", "", LONG))]).await;
    device.next().await;
    let stopped = server.stopping();
    device.expect_kick("draining").await;
    drop(device);
    let (results, end) = pushing.rest().await;
    assert_eq!((results.len(), results[0].id, results[0].status()), (1, 1, PushStatus::ConnectionLost));
    assert_eq!(end.unwrap_err().code(), Code::Unavailable);
    stopped.await;
}

#[tokio::test]
async fn at_the_age_of_its_connection_a_stream_ends_unavailable_after_its_results() {
    let server = TestServer::with(|config| config.control.max_connection_age = Some(Duration::from_millis(300))).await;
    let mut device = server.login("alice").await;
    let mut backend = server.backend().await;
    let mut pushing = Pushing::open(&mut backend).await;
    let mut watch = Watch::open(&mut backend, everyone()).await;
    pushing.send(vec![numbered(1, call("alice", "/ask", "", LONG)), numbered(2, push("alice", "/x", ""))]).await;
    assert_eq!(pushing.result().await.id, 2);
    let seq = device.next().await.seq;
    // The other stream of this connection ends, so its time is over.
    let (_, status) = watch.rest().await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    device.ack(seq, "in time").await;
    let (results, end) = pushing.rest().await;
    assert_eq!((results.len(), results[0].id, &*results[0].reply), (1, 1, "in time"));
    assert_eq!(end.unwrap_err().code(), Code::Unavailable);
    // A new connection serves on.
    let mut pushing = Pushing::open(&mut server.backend().await).await;
    pushing.send(vec![push("alice", "/x", "")]).await;
    assert_eq!(pushing.result().await.status(), PushStatus::Sent);
}

#[tokio::test]
async fn a_stream_that_waits_for_a_place_ends_at_the_age_of_its_connection_too() {
    let server = TestServer::with(|config| {
        config.control.max_connection_age = Some(Duration::from_millis(300));
        config.control.ack_waits = 1;
        config.control.stream_window = 1;
    })
    .await;
    let mut device = server.login("alice").await;
    let mut backend = server.backend().await;
    let mut holds = Pushing::open(&mut backend).await;
    holds.send(vec![numbered(1, call("alice", "/ask", "", LONG)), numbered(2, push("alice", "/x", ""))]).await;
    let seq = device.next().await.seq;
    let mut waits = Pushing::open(&mut backend).await;
    waits.send(vec![call("alice", "/ask", "", LONG)]).await;
    let (results, end) = waits.rest().await;
    assert_eq!(results, []);
    assert_eq!(end.unwrap_err().code(), Code::Unavailable);
    // What its window held back is not pushed after the end.
    device.ack(seq, "").await;
    let (results, end) = holds.rest().await;
    assert_eq!(ids(&results), [1]);
    assert_eq!(end.unwrap_err().code(), Code::Unavailable);
    device.expect_quiet().await;
}
