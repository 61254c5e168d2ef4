use super::*;

#[tokio::test(start_paused = true)]
async fn a_burst_is_handled_at_once_and_the_rest_at_the_steady_rate() {
    let node = Node::new();
    let mut device = node.login("alice").await;
    // The login was one of the 200 frames of the burst.
    let begun = Instant::now();
    let heartbeat = [&[0, 0, 0, 20][..], br#"{"uri":"/heartbeat"}"#].concat();
    device.write(&heartbeat.repeat(199)).await;
    for _ in 0..199 {
        assert_eq!(device.next().await.0, "/heartbeat");
    }
    assert!(begun.elapsed() < MILLI * 10, "{:?}", begun.elapsed());
    device.write(&heartbeat.repeat(100)).await;
    for _ in 0..100 {
        assert_eq!(device.next().await.0, "/heartbeat");
    }
    let took = begun.elapsed();
    assert!(took >= MILLI * 990 && took < MILLI * 1100, "100 a second: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn empty_frames_and_null_count_for_the_rate() {
    for message in [&[0, 0, 0, 0][..], b"\0\0\0\x04null"] {
        let node = Node::new();
        let mut device = node.login("alice").await;
        device.write(&message.repeat(199)).await;
        let (took, answer) = timed(async {
            device.heartbeat().await;
            device.next().await
        })
        .await;
        assert_eq!(answer.0, "/heartbeat");
        assert!(took >= MILLI * 8 && took < MILLI * 20, "one frame too many: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_before_authentication_is_held_back_too() {
    let node = Node::with(|config| {
        config.max_frames_per_second = 1;
        config.frames_burst = 5;
    });
    let mut device = node.connect();
    device.write(&[0; 4].repeat(8)).await;
    device.auth("alice").await;
    let (took, answer) = timed(device.next()).await;
    assert_eq!(answer.0, "/auth/success");
    assert!(took >= seconds(4) - MILLI && took < seconds(5), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_held_back_by_the_transport() {
    let node = Node::with(|config| config.max_frames_per_second = 1);
    let mut device = node.login("alice").await;
    let flood = tokio::time::timeout(seconds(10), async {
        for written in 0.. {
            let sent = tokio::time::timeout(seconds(5), device.stream.write_all(&[0; 4096])).await;
            if sent.is_err() {
                return written;
            }
            sent.unwrap().unwrap();
        }
        unreachable!()
    });
    let blocks = flood.await.expect("the pipe is full some day");
    // What the pipe holds, and what one read of the gateway takes.
    assert!(blocks * 4096 <= 64 * 1024 * 3, "{blocks} blocks were taken");
    assert!(node.is_online("alice"));
}

#[tokio::test(start_paused = true)]
async fn a_uid_whose_connections_replace_each_other_is_slowed() {
    let node = Node::new();
    let mut held = node.login("alice").await;
    // Eleven replaced ones are more than ten.
    for number in 0..11 {
        let (took, newer) = timed(node.login("alice")).await;
        assert!(took < MILLI * 10, "{number}: {took:?}");
        held.expect_kick("replaced").await;
        held = newer;
    }
    let mut newer = node.connect();
    let begun = Instant::now();
    newer.auth("alice").await;
    newer.heartbeat().await;
    settle().await;
    assert_eq!(node.push("alice", "still").connections, 1);
    assert_eq!(held.next().await, ("/push".into(), "still".into()), "the older keeps its place");
    held.expect_kick("replaced").await;
    let took = begun.elapsed();
    assert!(took >= seconds(1) && took <= seconds(30) + MILLI * 5, "{took:?}");
    assert_eq!(newer.next().await.0, "/auth/success");
    assert_eq!(newer.next().await.0, "/heartbeat");
}

#[tokio::test(start_paused = true)]
async fn a_slowed_device_that_goes_replaces_nobody() {
    let node = Node::with(|config| config.replaces_per_minute = 1);
    let mut held = node.login("alice").await;
    for _ in 0..2 {
        let newer = node.login("alice").await;
        held.expect_kick("replaced").await;
        held = newer;
    }
    let mut newer = node.connect();
    newer.auth("alice").await;
    newer.heartbeat().await;
    settle().await;
    newer.gone().await.unwrap();
    tokio::time::sleep(seconds(40)).await;
    held.heartbeat().await;
    assert_eq!(held.next().await.0, "/heartbeat");
}

#[tokio::test(start_paused = true)]
async fn who_replaces_nobody_isnt_slowed() {
    let node = Node::with(|config| config.replaces_per_minute = 1);
    let mut held = node.login("alice").await;
    for _ in 0..2 {
        held = {
            let newer = node.login("alice").await;
            held.expect_kick("replaced").await;
            newer
        };
    }
    // Another uid, and this one once it holds no connection.
    let (took, _bob) = timed(node.login("bob")).await;
    assert!(took < MILLI * 10, "{took:?}");
    held.gone().await.unwrap();
    let (took, mut held) = timed(node.login("alice")).await;
    assert!(took < MILLI * 10, "{took:?}");
    // A minute later it is forgotten.
    tokio::time::sleep(seconds(60)).await;
    let (took, _newer) = timed(node.login("alice")).await;
    assert!(took < MILLI * 10, "{took:?}");
    held.expect_kick("replaced").await;
}

#[tokio::test(start_paused = true)]
async fn replaces_per_minute_of_zero_slows_nobody() {
    let node = Node::with(|config| config.replaces_per_minute = 0);
    let mut held = node.login("alice").await;
    for _ in 0..50 {
        let (took, newer) = timed(node.login("alice")).await;
        assert!(took < MILLI * 10, "{took:?}");
        held.expect_kick("replaced").await;
        held = newer;
    }
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_is_held_back_is_a_sign_of_life() {
    let node = Node::with(|config| {
        config.max_frames_per_second = 1;
        config.frames_burst = 1;
        config.heartbeat = MILLI * 100;
        config.heartbeat_timeout = MILLI * 500;
    });
    let mut device = node.login("alice").await;
    device.heartbeat().await;
    assert_eq!(device.next().await.0, "/heartbeat");
}

#[tokio::test(start_paused = true)]
async fn a_slowed_device_that_goes_in_the_last_moment_replaces_nobody() {
    let node = Node::with(|config| config.replaces_per_minute = 1);
    for number in 0..100 {
        let uid = format!("device-{number}");
        let mut held = node.login(&uid).await;
        for _ in 0..2 {
            let newer = node.login(&uid).await;
            held.expect_kick("replaced").await;
            held = newer;
        }
        let mut newer = node.connect();
        newer.auth(&format!("1:{uid}")).await;
        settle().await;
        // Unread when the delay begins.
        newer.heartbeat().await;
        // The delay is random; in some of the rounds it ends soon after the device has gone.
        let answered = tokio::time::timeout(seconds(6), newer.next()).await.is_ok();
        newer.gone().await.unwrap();
        if !answered {
            held.heartbeat().await;
            assert_eq!(held.next().await.0, "/heartbeat", "round {number}");
        }
    }
}
