//! Logs that are made anew, since the one before came back shorter, or is gone.

use std::{fs, path::Path};

use serde_json::Value;

use crate::common::{
    TestServer,
    gateways::{Gateways, STREAM, over},
    nats::Nats,
    watch::words,
};

/// What the server says of the log.
async fn info(nats: &Nats) -> Value {
    let engine = async_nats::connect(&nats.urls()[0]).await.expect("the server listens");
    let answer = engine.request(format!("$JS.API.STREAM.INFO.{STREAM}"), "".into()).await.expect("an answer");
    serde_json::from_slice(&answer.payload).expect("JSON")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_log_that_was_rolled_back_is_noticed_by_all_and_made_anew_above_what_they_read() {
    let Some(mut nats) = Nats::one().await else { return };
    let mut gateways = Gateways::three(&nats.urls()).await;
    let mut watches = gateways.watch().await;
    let mut devices = vec![gateways.login(0, "early").await];
    watches.until("+early").await;
    let gone = gateways.login(2, "gone").await;
    watches.until("+gone").await;

    let earlier = tempfile::tempdir().unwrap();
    nats.terminate(0).await;
    copy(&nats.store(0), earlier.path());
    nats.restart(0).await;
    gateways.are_in_step().await;
    // None of this is in the copy.
    drop(gone);
    watches.until_and_none_lost("-gone").await;
    devices.push(gateways.login(1, "late").await);
    let came = watches.until_and_none_lost("+late").await.pop().expect("it came");
    let read = info(&nats).await;

    nats.terminate(0).await;
    fs::remove_dir_all(nats.store(0)).unwrap();
    copy(earlier.path(), &nats.store(0));
    nats.restart(0).await;
    let told = watches.reset().await;
    assert_eq!(words(&told), "=early =late");
    assert!(told.iter().all(|event| event.epoch > came.epoch), "epochs grow: {told:?} after {came:?}");
    let anew = info(&nats).await;
    assert_ne!(anew["created"], read["created"]);
    assert!(anew["config"]["first_seq"].as_u64() > read["state"]["last_seq"].as_u64(), "{anew} after {read}");

    gateways.are_in_step().await;
    for device in &mut devices {
        device.expect_quiet().await;
    }
    let _last = gateways.login(2, "last").await;
    assert_eq!(words(&watches.until_and_none_lost("+last").await), "+last", "nothing but the one reset");
    for (uid, device) in ["early", "late"].into_iter().zip(&mut devices) {
        for from in 0..3 {
            gateways.expect_push(from, device, uid).await;
        }
    }
    gateways.expect_same(&["early", "late", "gone", "last"]).await;
}

#[tokio::test]
async fn a_deleted_log_that_several_nodes_make_at_once_is_one_log() {
    let Some(nats) = Nats::one().await else { return };
    let urls = nats.urls();
    let mut gateways = Gateways::with([&urls[..]], |_, _| {}).await;
    let mut first = gateways.watch().await;
    // So that the log goes further than the next one does, if that begins anywhere.
    for number in 0..20 {
        let device = gateways.login(0, &format!("before-{number}")).await;
        first.until(&format!("+before-{number}")).await;
        drop(device);
        first.until(&format!("-before-{number}")).await;
    }
    let mut alice = gateways.login(0, "alice").await;
    let came = first.until("+alice").await.pop().expect("it came");

    // The one that is there makes it, too, once it has noticed.
    let engine = async_nats::connect(&urls[0]).await.expect("the server listens");
    let answer = engine.request(format!("$JS.API.STREAM.DELETE.{STREAM}"), "".into()).await.expect("an answer");
    assert!(answer.payload.windows(14).any(|part| part == b"\"success\":true"), "{answer:?}");
    let urls = &urls[..];
    let start = |number| TestServer::with(move |config| over(config, urls, number));
    let (two, three, four) = tokio::join!(start(2), start(3), start(4));
    for node in [two, three, four] {
        gateways.backends.push(node.backend().await);
        gateways.nodes.push(node);
    }
    gateways.are_in_step().await;

    let told = first.reset().await;
    assert_eq!(words(&told), "=alice");
    assert!(told[0].epoch > came.epoch, "{told:?} after {came:?}");
    let mut watches = gateways.watch().await;
    let _bob = gateways.login(3, "bob").await;
    let bob = watches.until_and_none_lost("+bob").await;
    assert_eq!(words(&bob), "+bob");
    assert_eq!(first.until_and_none_lost("+bob").await, bob, "the same numbers");
    for from in 0..4 {
        gateways.expect_push(from, &mut alice, "alice").await;
    }
    gateways.expect_same(&["alice", "bob"]).await;
}
