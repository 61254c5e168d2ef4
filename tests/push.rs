//! What a push promises: every outcome of one node, and what can't be processed.

mod common;

use common::{PATIENCE, TestDevice, TestServer, call, eventually, push, sessions};
use plex::proto::{self, PushResponse, PushStatus};
use std::time::Duration;
use tokio::{task::JoinHandle, time::timeout};

/// Longer than any test waits for an answer of a device.
const LONG: Duration = Duration::from_secs(60);

/// Begins a call to a device, and goes on.
async fn begin(server: &TestServer, request: proto::PushRequest) -> JoinHandle<PushResponse> {
    let mut backend = server.backend().await;
    tokio::spawn(async move { backend.push(request).await.expect("it is processed").into_inner() })
}

async fn end(pushing: JoinHandle<PushResponse>) -> PushResponse {
    timeout(PATIENCE, pushing).await.expect("an outcome in time").unwrap()
}

async fn push_one(server: &TestServer, request: proto::PushRequest) -> PushResponse {
    end(begin(server, request).await).await
}

/// Pushes to a device that doesn't read until it takes no more; gives how many it took, and how many it didn't.
async fn fill(server: &TestServer, uid: &str) -> (u64, u64) {
    let mut backend = server.backend().await;
    let body = "x".repeat(60_000);
    let (mut taken, mut refused, mut in_a_row) = (0, 0, 0);
    // Several in a row: the kernel may still be at work on what it took.
    while in_a_row < 20 {
        let result = backend.push(push(uid, "/fill", &body)).await.unwrap().into_inner();
        if result.status() == PushStatus::Sent {
            (taken, in_a_row) = (taken + 1, 0);
        } else {
            assert_eq!((result.status(), result.seq, result.connections), (PushStatus::QueueFull, 0, 0));
            (refused, in_a_row) = (refused + 1, in_a_row + 1);
        }
        assert!(taken < 2_000, "a queue ends");
    }
    (taken, refused)
}

#[tokio::test]
async fn a_push_to_a_connected_device_is_sent_and_arrives() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let mut backend = server.backend().await;
    let result = backend.push(push("alice", "/greeting", "hello")).await.unwrap().into_inner();
    assert_eq!(result.status(), PushStatus::Sent);
    assert_eq!(result.connections, 1);
    let message = device.next().await;
    assert_eq!((message.seq, &*message.uri, &*message.body), (result.seq, "/greeting", "hello"));
    assert!(result.seq > 0 && result.seq < 1 << 53);
}

#[tokio::test]
async fn a_push_to_nobody_is_offline() {
    let server = TestServer::start().await;
    for request in [push("bob", "/x", ""), call("bob", "/x", "", LONG)] {
        let result = push_one(&server, proto::PushRequest { id: u64::MAX, ..request }).await;
        assert_eq!(result.status(), PushStatus::Offline);
        assert_eq!((result.seq, result.connections, result.id), (0, 0, u64::MAX));
    }
}

#[tokio::test]
async fn a_push_is_offline_once_the_device_has_gone_and_before_it_has_authenticated() {
    let server = TestServer::start().await;
    let mut device = TestDevice::connect(server.device()).await;
    assert_eq!(push_one(&server, push("alice", "/x", "")).await.status(), PushStatus::Offline);
    device.auth_v2("alice").await;
    device.next().await;
    assert_eq!(push_one(&server, push("alice", "/x", "")).await.status(), PushStatus::Sent);
    drop(device);
    eventually("the end is noticed", || async {
        (push_one(&server, push("alice", "/x", "")).await.status() == PushStatus::Offline).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_ack_in_time_answers_the_push_with_its_body() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let request = proto::PushRequest { id: 7, ..call("alice", "/ask", "?", LONG) };
    let pushing = begin(&server, request).await;
    let message = device.next().await;
    device.ack(message.seq, "yes").await;
    let result = end(pushing).await;
    assert_eq!(result.status(), PushStatus::Acked);
    assert_eq!((&*result.reply, result.id, result.seq, result.connections), ("yes", 7, message.seq, 1));
}

#[tokio::test]
async fn a_nack_answers_the_push_with_its_body() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let pushing = begin(&server, call("alice", "/ask", "?", LONG)).await;
    let message = device.next().await;
    device.nack(message.seq, "can't").await;
    let result = end(pushing).await;
    assert_eq!((result.status(), &*result.reply, result.seq), (PushStatus::Nacked, "can't", message.seq));
}

#[tokio::test]
async fn a_client_of_the_old_framework_gets_pushes_and_may_ack_them() {
    let server = TestServer::start().await;
    let mut device = TestDevice::login_v1(server.device(), "alice").await;
    let pushing = begin(&server, call("alice", "/ask", "?", LONG)).await;
    let message = device.next().await;
    assert_eq!((&*message.uri, &*message.body), ("/ask", "?"));
    device.ack(message.seq, "").await;
    let result = end(pushing).await;
    assert_eq!((result.status(), &*result.reply), (PushStatus::Acked, ""));
}

#[tokio::test]
async fn no_answer_in_time_is_an_ack_timeout_though_it_was_sent() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let result = push_one(&server, call("alice", "/ask", "?", Duration::from_millis(20))).await;
    assert_eq!(result.status(), PushStatus::AckTimeout);
    assert_eq!((result.seq, result.connections), (device.next().await.seq, 1));
    // Too late: nobody waits for it, and nothing comes of it.
    device.ack(result.seq, "late").await;
    device.expect_quiet().await;
    assert_eq!(server.metric("plex_device_answers_late_total").await, 1);
    assert_eq!(server.metric("plex_ack_waits").await, 0);
}

#[tokio::test]
async fn the_end_of_the_connection_before_an_answer_is_a_lost_connection() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let pushing = begin(&server, call("alice", "/ask", "?", LONG)).await;
    let seq = device.next().await.seq;
    drop(device);
    let result = end(pushing).await;
    assert_eq!((result.status(), result.seq, result.connections), (PushStatus::ConnectionLost, seq, 1));
}

#[tokio::test]
async fn a_replaced_connection_loses_its_waits_and_its_acks_are_thrown_away() {
    let server = TestServer::start().await;
    let mut old = server.login("alice").await;
    let pushing = begin(&server, call("alice", "/ask", "?", LONG)).await;
    let seq = old.next().await.seq;
    let mut new = server.login("alice").await;
    old.ack(seq, "from the old").await;
    let result = end(pushing).await;
    assert_eq!((result.status(), &*result.reply), (PushStatus::ConnectionLost, ""));
    old.expect_kick("replaced").await;
    // The newer connection didn't take that push: its ack counts for nothing.
    new.ack(seq, "").await;
    new.expect_quiet().await;
}

#[tokio::test]
async fn only_an_answer_with_the_seq_of_the_push_from_a_connection_that_took_it_counts() {
    let server = TestServer::start().await;
    let (mut alice, mut bob) = (server.login("alice").await, server.login("bob").await);
    let pushing = begin(&server, call("alice", "/ask", "?", LONG)).await;
    let seq = alice.next().await.seq;
    bob.ack(seq, "bob").await;
    bob.nack(seq, "bob").await;
    bob.expect_quiet().await;
    alice.ack(seq + 1, "above").await;
    alice.ack(seq - 1, "below").await;
    alice.nack(0, "none").await;
    alice.expect_quiet().await;
    alice.ack(seq, "alice").await;
    assert_eq!(end(pushing).await.reply, "alice");
}

#[tokio::test]
async fn each_of_many_waits_gets_its_own_answer() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let mut backend = server.backend().await;
    let mut pushing = Vec::new();
    for number in 0..50 {
        let (mut backend, request) = (backend.clone(), call("alice", "/ask", &number.to_string(), LONG));
        pushing.push(tokio::spawn(async move { backend.push(request).await.unwrap().into_inner() }));
    }
    let mut messages = Vec::new();
    for _ in 0..50 {
        messages.push(device.next().await);
    }
    for message in messages.iter().rev() {
        device.ack(message.seq, &format!("answer {}", message.body)).await;
    }
    for (number, pushing) in pushing.into_iter().enumerate() {
        let result = end(pushing).await;
        assert_eq!((result.status(), result.reply), (PushStatus::Acked, format!("answer {number}")));
    }
    // A seq that was answered is answered no more.
    let second = backend.push(call("alice", "/ask", "", Duration::from_millis(1))).await.unwrap().into_inner();
    assert_eq!(second.status(), PushStatus::AckTimeout);
}

#[tokio::test]
async fn a_full_queue_takes_nothing_and_delays_nobody_else() {
    let server = TestServer::start().await;
    let mut slow = server.login("slow").await;
    let mut other = server.login("other").await;
    let (taken, refused) = fill(&server, "slow").await;
    let waiting = push_one(&server, call("slow", "/fill", &"x".repeat(60_000), LONG)).await;
    assert_eq!((waiting.status(), waiting.seq), (PushStatus::QueueFull, 0));
    assert_eq!(push_one(&server, push("other", "/x", "")).await.status(), PushStatus::Sent);
    other.next().await;
    let session = sessions(&mut server.backend().await, "slow").await.remove(0);
    assert_eq!((session.pushes_sent, session.pushes_dropped), (taken, refused + 1));
    assert!(session.queued_bytes > 0 && session.queued_bytes <= 64 << 10, "{}", session.queued_bytes);
    // What was SENT arrives, what was not does not.
    for _ in 0..taken {
        assert_eq!(slow.next().await.uri, "/fill");
    }
    slow.expect_quiet().await;
    assert_eq!(push_one(&server, push("slow", "/x", "")).await.status(), PushStatus::Sent);
}

#[tokio::test]
async fn an_empty_queue_takes_any_frame() {
    let server = TestServer::with(|config| {
        config.device.queue_bytes = 1024;
        config.device.max_frame = 16 << 20;
    })
    .await;
    let mut device = server.login("alice").await;
    // More than a socket takes at once.
    let body = "x".repeat((3 << 20) + 1);
    let result = push_one(&server, push("alice", "/large", &body)).await;
    assert_eq!(result.status(), PushStatus::Sent);
    assert_eq!(device.next().await.body.len(), body.len());
}

#[tokio::test]
async fn a_push_goes_to_all_connections_of_the_uid_with_one_seq() {
    let server = TestServer::with(|config| config.device.connections_per_uid = 3).await;
    let mut devices = [server.login("alice").await, server.login("alice").await, server.login("alice").await];
    let result = push_one(&server, push("alice", "/x", "")).await;
    assert_eq!((result.status(), result.connections), (PushStatus::Sent, 3));
    for device in &mut devices {
        assert_eq!(device.next().await.seq, result.seq);
    }
}

#[tokio::test]
async fn the_first_answer_of_several_connections_decides() {
    let server = TestServer::with(|config| config.device.connections_per_uid = 2).await;
    let (mut one, mut other) = (server.login("alice").await, server.login("alice").await);
    let pushing = begin(&server, call("alice", "/ask", "", LONG)).await;
    let seq = one.next().await.seq;
    assert_eq!(other.next().await.seq, seq);
    other.nack(seq, "first").await;
    other.expect_quiet().await;
    one.ack(seq, "second").await;
    let result = end(pushing).await;
    assert_eq!((result.status(), &*result.reply, result.connections), (PushStatus::Nacked, "first", 2));
}

#[tokio::test]
async fn a_push_is_lost_only_with_the_last_connection_that_took_it() {
    let server = TestServer::with(|config| config.device.connections_per_uid = 2).await;
    let (mut one, mut other) = (server.login("alice").await, server.login("alice").await);
    let first = begin(&server, call("alice", "/ask", "1", LONG)).await;
    let seq = one.next().await.seq;
    other.next().await;
    drop(one);
    eventually("one connection", || async {
        (sessions(&mut server.backend().await, "alice").await.len() == 1).then_some(())
    })
    .await;
    other.ack(seq, "still here").await;
    assert_eq!(end(first).await.reply, "still here");

    let second = begin(&server, call("alice", "/ask", "2", LONG)).await;
    other.next().await;
    // One that came later didn't take it.
    let _later = server.login("alice").await;
    drop(other);
    assert_eq!(end(second).await.status(), PushStatus::ConnectionLost);
}

#[tokio::test]
async fn one_connection_with_room_is_enough() {
    let server = TestServer::with(|config| config.device.connections_per_uid = 2).await;
    let _slow = server.login("alice").await;
    // Filled while it is alone.
    fill(&server, "alice").await;
    let mut reads = server.login("alice").await;
    let result = push_one(&server, push("alice", "/x", &"x".repeat(60_000))).await;
    assert_eq!((result.status(), result.connections), (PushStatus::Sent, 1));
    assert_eq!(reads.next().await.seq, result.seq);
}

#[tokio::test]
async fn unary_pushes_one_after_the_other_reach_the_device_in_that_order_with_growing_seq() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let mut backend = server.backend().await;
    let mut last = 0;
    for number in 0..200 {
        let result = backend.push(push("alice", "/n", &number.to_string())).await.unwrap().into_inner();
        assert!(result.seq > last, "{} after {last}", result.seq);
        last = result.seq;
    }
    for number in 0..200 {
        assert_eq!(device.next().await.body, number.to_string());
    }
}

#[tokio::test]
async fn cancelling_a_call_takes_nothing_back_and_gives_its_place_up() {
    let server = TestServer::with(|config| config.control.ack_waits = 1).await;
    let mut device = server.login("alice").await;
    let pushing = begin(&server, call("alice", "/ask", "", LONG)).await;
    device.next().await;
    pushing.abort();
    server.metric_is("plex_ack_waits", 0).await;
    let pushing = begin(&server, call("alice", "/ask", "", LONG)).await;
    let seq = device.next().await.seq;
    device.ack(seq, "").await;
    assert_eq!(end(pushing).await.status(), PushStatus::Acked);
}

#[tokio::test]
async fn over_ack_waits_a_unary_call_is_refused_and_nothing_is_sent() {
    let server = TestServer::with(|config| config.control.ack_waits = 2).await;
    let mut device = server.login("alice").await;
    let first = begin(&server, call("alice", "/ask", "1", LONG)).await;
    let seq = device.next().await.seq;
    let second = begin(&server, call("alice", "/ask", "2", LONG)).await;
    device.next().await;
    assert_eq!(server.metric("plex_ack_waits").await, 2);
    let mut backend = server.backend().await;
    let refused = backend.push(call("alice", "/ask", "3", LONG)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("control.ack_waits"), "{refused}");
    device.expect_quiet().await;
    // One without `ack_timeout` needs no place.
    assert_eq!(push_one(&server, push("alice", "/x", "")).await.status(), PushStatus::Sent);
    device.next().await;
    device.ack(seq, "").await;
    assert_eq!(end(first).await.status(), PushStatus::Acked);
    let third = begin(&server, call("alice", "/ask", "3", LONG)).await;
    device.next().await;
    drop(device);
    assert_eq!(end(second).await.status(), PushStatus::ConnectionLost);
    assert_eq!(end(third).await.status(), PushStatus::ConnectionLost);
}

#[tokio::test]
async fn a_wait_ends_before_the_deadline_of_its_call() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let mut backend = server.backend().await;
    let mut request = tonic::Request::new(call("alice", "/ask", "", LONG));
    request.set_timeout(Duration::from_secs(2));
    let result = backend.push(request).await.expect("an outcome, not DEADLINE_EXCEEDED").into_inner();
    assert_eq!((result.status(), result.connections), (PushStatus::AckTimeout, 1));
    assert_eq!(device.next().await.seq, result.seq);
}

#[tokio::test]
async fn seqs_are_unique_whoever_asks() {
    let server = TestServer::start().await;
    let _device = server.login("alice").await;
    let mut callers = Vec::new();
    for _ in 0..4 {
        let mut backend = server.backend().await;
        callers.push(tokio::spawn(async move {
            let mut seqs = Vec::new();
            for _ in 0..100 {
                seqs.push(backend.push(push("alice", "/x", "")).await.unwrap().into_inner().seq);
            }
            assert!(seqs.is_sorted_by(|one, next| one < next), "they grow for each caller");
            seqs
        }));
    }
    let mut all = std::collections::HashSet::new();
    for caller in callers {
        all.extend(caller.await.unwrap());
    }
    assert_eq!(all.len(), 400);
}

#[tokio::test]
async fn seqs_grow_over_a_restart_and_stay_below_2_to_the_53() {
    let (config, folder) = common::config();
    // Where an earlier start had a clock that was far ahead.
    let mark: i64 = (1 << 52) + 12_345;
    std::fs::create_dir_all(folder.path()).unwrap();
    let mut last = 0;
    for start in 0..4 {
        let server = TestServer::of(config.clone(), None, |builder| builder).await;
        let _device = server.login("alice").await;
        let result = push_one(&server, push("alice", "/x", "")).await;
        assert!(result.seq > last && result.seq < 1 << 53, "{} after {last}", result.seq);
        last = result.seq;
        match start {
            0 => server.stopped().await,
            // As after a crash: nothing is written at the end.
            1 => drop(server),
            _ => {
                server.stopped().await;
                let file = std::fs::read_dir(folder.path())
                    .unwrap()
                    .map(|entry| entry.unwrap().path())
                    .find(|path| std::fs::read_to_string(path).is_ok_and(|text| text.trim().parse::<i64>().is_ok()))
                    .expect("the mark is a number in a file");
                std::fs::write(file, mark.to_string()).unwrap();
                last = mark - 1;
            }
        }
    }
    assert!(last >= mark - 1);
}
