use super::*;

use crate::model::EndReason;

#[tokio::test(start_paused = true)]
async fn silence_is_a_timeout() {
    let node = Node::new();
    let mut device = node.login("alice").await;
    let (took, ()) = timed(device.expect_kick("timeout")).await;
    assert!(took >= seconds(120) && took < seconds(121), "{took:?}");
    assert!(!node.is_online("alice"));
}

#[tokio::test(start_paused = true)]
async fn pushes_are_no_sign_of_life() {
    let node = Node::new();
    let mut device = node.login("alice").await;
    let begun = Instant::now();
    loop {
        tokio::time::sleep(seconds(7)).await;
        let sent = node.push("alice", "x").status == PushStatus::Sent;
        match device.next().await.0.as_str() {
            "/push" if sent => {}
            "/plex/kick" => break,
            other => panic!("{other}"),
        }
    }
    assert!(begun.elapsed() >= seconds(120) && begun.elapsed() < seconds(130), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn any_whole_frame_is_a_sign_of_life() {
    let node = Node::new();
    let mut device = node.login("alice").await;
    let frames = [&b"\0\0\0\0"[..], b"\0\0\0\x04null", b"\0\0\0\x02{}", b"\0\0\0\x01x", b"\0\0\0\x0c{\"uri\":\"/a\"}"];
    for frame in frames {
        tokio::time::sleep(seconds(119)).await;
        device.write(frame).await;
    }
    settle().await;
    assert!(node.is_online("alice"));
    assert_eq!(device.next().await.0, "/plex/error");
    let (took, ()) = timed(device.expect_kick("timeout")).await;
    assert!(took >= seconds(119) && took <= seconds(120), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_part_of_a_frame_is_no_sign_of_life() {
    let node = Node::new();
    let mut device = node.login("alice").await;
    let begun = Instant::now();
    for byte in [0, 0, 0] {
        tokio::time::sleep(seconds(39)).await;
        device.write(&[byte]).await;
    }
    device.expect_kick("timeout").await;
    assert!(begun.elapsed() >= seconds(120) && begun.elapsed() < seconds(121), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_takes_no_byte_for_write_timeout_is_slow() {
    let node = Node::new();
    let mut device = node.login_with("alice", 1000).await;
    assert_eq!(node.push("alice", &"x".repeat(2000)).status, PushStatus::Sent);
    let begun = Instant::now();
    while node.is_online("alice") {
        tokio::time::sleep(MILLI * 100).await;
    }
    let took = begun.elapsed();
    assert!(took >= seconds(10) && took < seconds(11), "{took:?}");
    // What was begun is finished where that is possible, so that the kick can be read.
    assert_eq!(device.next().await.0, "/push");
    device.expect_kick("slow").await;
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_takes_a_byte_now_and_then_isnt_slow() {
    let node = Node::new();
    let mut device = node.login_with("alice", 1000).await;
    node.push("alice", &"x".repeat(2000));
    for _ in 0..10 {
        tokio::time::sleep(seconds(9)).await;
        let mut byte = [0; 50];
        device.stream.read_exact(&mut byte).await.unwrap();
        device.heartbeat().await;
    }
    assert!(node.is_online("alice"));
}

#[tokio::test(start_paused = true)]
async fn an_idle_socket_isnt_slow() {
    let node = Node::with(|config| config.heartbeat_timeout = seconds(10_000));
    let mut device = node.login("alice").await;
    tokio::time::sleep(seconds(1000)).await;
    device.heartbeat().await;
    assert_eq!(device.next().await.0, "/heartbeat");
}

#[tokio::test(start_paused = true)]
async fn input_is_thrown_away_for_a_second_after_the_last_frame() {
    let node = Node::new();
    let mut device = node.login("alice").await;
    node.devices.hub.disconnect_here("alice", "");
    device.expect_kick("disconnected").await;
    let begun = Instant::now();
    while !device.task.is_finished() {
        // Taken, up to the end; then there is nobody any more.
        let _ = device.stream.write(&[1; 10_000]).await;
        tokio::time::sleep(MILLI * 50).await;
    }
    let took = begun.elapsed();
    assert!(took >= MILLI * 950 && took < MILLI * 1100, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_close_doesnt_wait_for_a_peer_that_closes_too() {
    let node = Node::new();
    let mut device = node.login("alice").await;
    node.devices.hub.disconnect_here("alice", "");
    device.expect_kick("disconnected").await;
    let (took, _) = timed(device.gone()).await;
    assert!(took < MILLI * 100, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_full_socket_holds_the_last_frame_up_for_a_second() {
    for reason in [EndReason::Slow, EndReason::Timeout, EndReason::Protocol] {
        let node = Node::with(|config| config.write_timeout = seconds(600));
        let device = node.login_with("alice", 1000).await;
        node.push("alice", &"x".repeat(2000));
        settle().await;
        node.devices.hub.end_here("alice", reason);
        assert!(!node.is_online("alice"), "it has ended at once");
        let (took, _) = timed(device.task).await;
        assert!(took >= seconds(1) && took <= seconds(2) + MILLI * 10, "{reason:?}: {took:?}");
        drop(device.stream);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_queued_goes_out_first_for_at_most_write_timeout() {
    for reason in [EndReason::Draining, EndReason::Expired, EndReason::Disconnected, EndReason::Replaced] {
        let node = Node::new();
        let device = node.login_with("alice", 1000).await;
        node.push("alice", &"x".repeat(2000));
        settle().await;
        node.devices.hub.end_here("alice", reason);
        let (took, _) = timed(device.task).await;
        assert!(took >= seconds(10) && took < seconds(12), "{reason:?}: {took:?}");
        drop(device.stream);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_queued_goes_out_before_a_kick_that_isnt_the_devices_fault() {
    for reason in [EndReason::Draining, EndReason::Expired, EndReason::Disconnected, EndReason::Replaced] {
        let node = Node::new();
        let mut device = node.login_with("alice", 1000).await;
        for number in 0..5 {
            assert_eq!(node.push("alice", &format!("{number}{}", "x".repeat(2000))).status, PushStatus::Sent);
        }
        settle().await;
        node.devices.hub.end_here("alice", reason);
        assert_eq!(node.push("alice", "late").status, PushStatus::Offline);
        for number in 0..5 {
            let (uri, body) = device.next().await;
            assert_eq!((&*uri, &body.as_str().unwrap()[..1]), ("/push", &*number.to_string()));
        }
        device.expect_kick(reason.name()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_queued_is_dropped_by_a_kick_that_is_the_devices_fault() {
    for reason in [EndReason::Slow, EndReason::Timeout, EndReason::Protocol] {
        let node = Node::new();
        let mut device = node.login_with("alice", 1000).await;
        for _ in 0..5 {
            node.push("alice", &"x".repeat(2000));
        }
        settle().await;
        node.devices.hub.end_here("alice", reason);
        assert_eq!(device.next().await.0, "/push", "the one that was begun");
        device.expect_kick(reason.name()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn answers_dont_wait_behind_a_full_queue_and_are_merged() {
    let node = Node::with(|config| {
        config.queue_bytes = 4000;
        config.max_errors = 100;
    });
    let mut device = node.login_with("alice", 1000).await;
    let mut sent = 0;
    while node.push("alice", &"x".repeat(900)).status == PushStatus::Sent {
        sent += 1;
    }
    for _ in 0..20 {
        device.heartbeat().await;
        device.send("x").await;
    }
    settle().await;
    let mut uris = Vec::new();
    while uris.iter().filter(|uri| *uri == "/push").count() < sent {
        uris.push(device.next().await.0);
    }
    let place = |uri: &str| uris.iter().position(|other| other == uri).unwrap();
    let last_push = uris.iter().rposition(|uri| uri == "/push").unwrap();
    for answer in ["/heartbeat", "/plex/error"] {
        assert_eq!(uris.iter().filter(|uri| *uri == answer).count(), 1, "{answer} once: {uris:?}");
        assert!(place(answer) < last_push, "{answer} ahead of pushes: {uris:?}");
    }
    device.heartbeat().await;
    assert_eq!(device.next().await.0, "/heartbeat");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_sends_away_no_more_than_drain_rate_a_second() {
    for (rate, within, first_second) in [(10, 20, 10), (1, 1_000, 1), (1_000, 20, 60), (1, 6, 10)] {
        let node = Node::new();
        let mut devices = Vec::new();
        for number in 0..60 {
            devices.push(node.login(&format!("device-{number}")).await);
        }
        let hub = node.devices.hub.clone();
        let begun = Instant::now();
        let draining = tokio::spawn(async move { hub.drain(rate, seconds(within)).await });
        tokio::time::sleep(seconds(1)).await;
        let told = 60 - node.devices.hub.connections();
        assert!(told.abs_diff(first_second) <= 1, "{told} a second at a rate of {rate} in {within} s");
        draining.await.unwrap();
        assert_eq!(node.devices.hub.connections(), 0);
        assert!(begun.elapsed() <= seconds(within), "{:?} of {within} s", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_when_the_last_has_gone() {
    let node = Node::new();
    let mut devices = Vec::new();
    for number in 0..60 {
        devices.push(node.login(&format!("device-{number}")).await);
    }
    let hub = node.devices.hub.clone();
    let draining = tokio::spawn(async move { hub.drain(1, seconds(1_000)).await });
    for device in devices {
        device.gone().await.unwrap();
    }
    let (took, done) = timed(draining).await;
    done.unwrap();
    assert!(took < seconds(1), "{took:?}");
}
