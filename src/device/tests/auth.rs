use super::*;

#[tokio::test(start_paused = true)]
async fn auth_timeout_closes_without_a_frame() {
    let node = Node::new();
    let mut device = node.connect();
    let (took, end) = timed(device.maybe_next()).await;
    assert_eq!(end, None);
    assert!(took >= seconds(30) && took < seconds(31), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn auth_timeout_isnt_begun_anew_by_frames() {
    let node = Node::new();
    let mut device = node.connect();
    let begun = Instant::now();
    device.write(&[0; 4]).await;
    tokio::time::sleep(seconds(20)).await;
    device.auth("refuse").await;
    device.expect_failed("refused").await;
    device.write(&[0, 0]).await;
    assert_eq!(device.maybe_next().await, None);
    assert!(begun.elapsed() >= seconds(30) && begun.elapsed() < seconds(31), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn auth_timeout_stands_still_during_the_authenticators_call() {
    let node = Node::new();
    let mut device = node.connect();
    tokio::time::sleep(seconds(29)).await;
    device.auth("60:refuse").await;
    device.expect_failed("refused").await;
    let (took, end) = timed(device.maybe_next()).await;
    assert_eq!(end, None);
    assert!(took >= MILLI * 900 && took < seconds(2), "the second that was left: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn auth_timeout_stands_still_while_unavailable_is_held_back() {
    let node = Node::with(|config| config.auth_timeout = seconds(1));
    let mut device = node.connect();
    for _ in 0..2 {
        tokio::time::sleep(MILLI * 300).await;
        device.auth("down").await;
        let (took, ()) = timed(device.expect_failed("unavailable")).await;
        assert!(took >= seconds(1) && took <= seconds(3) + MILLI * 2, "{took:?}");
    }
    device.auth("alice").await;
    assert_eq!(device.next().await.0, "/auth/success");
}

#[tokio::test(start_paused = true)]
async fn unavailable_is_held_back_for_a_random_time() {
    let node = Node::new();
    let mut times = Vec::new();
    for _ in 0..20 {
        let mut device = node.connect();
        device.auth("down").await;
        let (took, ()) = timed(device.expect_failed("unavailable")).await;
        assert!(took >= seconds(1) && took <= seconds(3) + MILLI * 2, "1 to 3 times a second: {took:?}");
        times.push(took);
    }
    times.sort();
    assert!(times[19] - times[0] > MILLI * 200, "it is random: {times:?}");
}

#[tokio::test(start_paused = true)]
async fn a_device_isnt_read_while_unavailable_is_held_back() {
    let node = Node::new();
    let mut device = node.connect();
    device.auth("down").await;
    device.auth("down").await;
    settle().await;
    assert_eq!(node.oracle.asked.load(SeqCst), 1);
    device.expect_failed("unavailable").await;
    let (took, ()) = timed(device.expect_failed("unavailable")).await;
    assert!(took >= seconds(1), "the second question is asked after the first answer: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_third_unavailable_in_a_row_is_answered_and_closes() {
    let node = Node::new();
    let mut device = node.connect();
    for _ in 0..2 {
        device.auth("down").await;
        device.expect_failed("unavailable").await;
    }
    // Another answer breaks the row.
    device.auth("refuse").await;
    device.expect_failed("refused").await;
    for _ in 0..3 {
        device.auth("down").await;
        device.expect_failed("unavailable").await;
    }
    assert_eq!(device.maybe_next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_goes_takes_its_question_back() {
    let node = Node::new();
    let mut device = node.connect();
    device.auth("hang").await;
    settle().await;
    assert_eq!(node.oracle.under_way.load(SeqCst), 1);
    device.gone().await.unwrap();
    assert_eq!(node.oracle.under_way.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn an_authenticator_without_an_answer_in_time_is_unavailable() {
    let node = Node::new();
    let mut device = node.connect();
    device.auth("hang").await;
    let (took, ()) = timed(device.expect_failed("unavailable")).await;
    assert!(took >= seconds(100) && took < seconds(104), "auth.timeout, then the delay: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn calls_over_max_in_flight_wait_for_a_place_as_long_as_for_an_answer() {
    let node = Node::new();
    let mut hanging = Vec::new();
    for _ in 0..10 {
        let mut device = node.connect();
        device.auth("hang").await;
        hanging.push(device);
    }
    settle().await;
    let mut waiting = node.connect();
    waiting.auth("alice").await;
    settle().await;
    assert_eq!(node.oracle.asked.load(SeqCst), 10);
    hanging.pop().unwrap().gone().await.unwrap();
    assert_eq!(waiting.next().await.0, "/auth/success");
}

#[tokio::test(start_paused = true)]
async fn pushes_go_on_and_no_frame_is_read_while_a_device_re_authenticates() {
    let node = Node::new();
    let mut device = node.login("alice").await;
    device.auth("20:alice").await;
    device.heartbeat().await;
    settle().await;
    assert_eq!(node.push("alice", "meanwhile").status, PushStatus::Sent);
    let (took, pushed) = timed(device.next()).await;
    assert_eq!(pushed, ("/push".into(), "meanwhile".into()));
    assert!(took < seconds(1), "{took:?}");
    let (took, answer) = timed(device.next()).await;
    assert_eq!(answer.0, "/auth/success");
    assert!(took > seconds(19), "{took:?}");
    assert_eq!(device.next().await.0, "/heartbeat");
}

#[tokio::test(start_paused = true)]
async fn unavailable_closes_no_session_however_often_and_is_held_back() {
    let node = Node::new();
    let mut device = node.login("alice").await;
    for _ in 0..5 {
        device.auth("down").await;
        settle().await;
        assert_eq!(node.push("alice", "meanwhile").status, PushStatus::Sent);
        assert_eq!(device.next().await.0, "/push");
        let (took, ()) = timed(device.expect_failed("unavailable")).await;
        assert!(took >= MILLI * 990 && took <= seconds(3), "{took:?}");
    }
    device.heartbeat().await;
    assert_eq!(device.next().await.0, "/heartbeat");
}

#[tokio::test(start_paused = true)]
async fn a_session_isnt_timed_out_while_its_re_authentication_is_under_way() {
    let node = Node::with(|config| {
        config.heartbeat = seconds(5);
        config.heartbeat_timeout = seconds(10);
    });
    let mut device = node.login("alice").await;
    device.auth("60:refuse").await;
    device.expect_failed("refused").await;
    let (took, ()) = timed(device.expect_kick("timeout")).await;
    assert!(took >= seconds(10) && took < seconds(11), "the silence begins with the answer: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_when_its_credential_does() {
    let node = Node::new();
    let mut device = node.connect();
    device.auth("alice/90").await;
    let (_, body) = device.next().await;
    assert_eq!(body["expires_in_seconds"], 90, "rounded up");
    let (took, ()) = timed(device.expect_kick("expired")).await;
    assert!(took > seconds(88) && took <= seconds(90), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_re_authentication_takes_over_the_new_expiry() {
    let node = Node::with(|config| config.heartbeat_timeout = seconds(100_000));
    let mut device = node.login("alice/90").await;
    tokio::time::sleep(seconds(80)).await;
    device.auth("alice/1000").await;
    let (uri, body) = device.next().await;
    assert_eq!((&*uri, &body["expires_in_seconds"]), ("/auth/success", &json!(1000)));
    let (took, ()) = timed(device.expect_kick("expired")).await;
    assert!(took > seconds(998) && took <= seconds(1000), "{took:?}");

    let mut endless = node.login("bob/90").await;
    endless.auth("bob").await;
    let (uri, body) = endless.next().await;
    assert_eq!((&*uri, body.get("expires_in_seconds")), ("/auth/success", None));
    let (took, ()) = timed(endless.expect_kick("timeout")).await;
    assert!(took > seconds(99_000), "its session doesn't end by itself any more: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_re_authentication_keeps_the_expiry() {
    let node = Node::new();
    for credential in ["refuse", "bob/5", "down"] {
        let mut device = node.login("alice/90").await;
        let begun = Instant::now();
        device.auth(credential).await;
        assert_eq!(device.next().await.0, "/auth/failed");
        device.expect_kick("expired").await;
        let took = begun.elapsed();
        assert!(took > seconds(88) && took <= seconds(90), "{credential}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_isnt_authenticated_is_closed_at_once_when_the_node_stops() {
    let node = Node::new();
    let (mut silent, mut asking) = (node.connect(), node.connect());
    asking.auth("hang").await;
    settle().await;
    node.devices.stopping.cancel();
    for device in [&mut silent, &mut asking] {
        let (took, end) = timed(device.maybe_next()).await;
        assert_eq!(end, None);
        assert!(took < seconds(1), "{took:?}");
    }
    assert_eq!(node.oracle.under_way.load(SeqCst), 0);
}
#[tokio::test(start_paused = true)]
async fn a_session_that_goes_while_it_re_authenticates_is_offline_at_once() {
    let node = Node::new();
    let mut device = node.login("alice").await;
    device.auth("hang").await;
    settle().await;
    let (took, _) = timed(device.gone()).await;
    assert!(took < seconds(1), "{took:?}");
    assert!(!node.is_online("alice"));
    assert_eq!(node.oracle.under_way.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_while_it_re_authenticates_takes_its_question_back() {
    let node = Node::new();
    let mut device = node.login("alice").await;
    device.auth("hang").await;
    settle().await;
    assert_eq!(node.oracle.under_way.load(SeqCst), 1);
    node.devices.hub.disconnect_here("alice", "");
    device.expect_kick("disconnected").await;
    assert_eq!(node.oracle.under_way.load(SeqCst), 0, "before the peer has closed");
}
