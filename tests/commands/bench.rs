//! `plex bench`: every way of pushing, against a gateway that is small and short of time.

#[path = "bench/nodes.rs"]
mod nodes;
#[path = "bench/several.rs"]
mod several;

use plex::config::AuthMode;
use serde_json::Value;

use super::{Ground, common::tls_device::Authority};

const SHORT: [&str; 8] = ["--devices", "20", "--duration", "300ms", "--warm-up", "100ms", "--prefix", "b-"];

/// The report of a run that was clean.
async fn bench(ground: &Ground, arguments: &[&str]) -> Value {
    let done = ground.run(&[&["bench", "--json"], &SHORT[..], arguments].concat()).await;
    assert_eq!((done.code, &*done.stderr), (0, ""), "{done:?}");
    done.json().remove(0)
}

/// How many pushes had this outcome.
fn outcome(report: &Value, status: &str) -> u64 {
    report["statuses"][status].as_u64().unwrap_or_default()
}

/// What a report has, with what is measured replaced.
fn shape(report: &Value) -> String {
    fn replace(name: &str, value: &mut Value) {
        match value {
            Value::Object(_) if name == "tally" => *value = "TALLY".into(),
            Value::Object(fields) => fields.iter_mut().for_each(|(name, value)| replace(name, value)),
            Value::Array(values) => values.iter_mut().for_each(|value| replace(name, value)),
            Value::Number(_) if !["devices", "bodyBytes", "rate", "lost", "doubled", "processes"].contains(&name) => {
                *value = "N".into();
            }
            _ => {}
        }
    }
    let mut report = report.clone();
    replace("", &mut report);
    report.to_string()
}

#[tokio::test]
async fn the_json_of_a_report_stays_as_it_is() {
    let ground = Ground::new().await;
    let pid = std::process::id().to_string();
    let report = bench(&ground, &["--mode", "ack", "--rate", "500", "--pid", &pid, "--floor"]).await;
    insta::assert_snapshot!(shape(&report), @r#"{"bodyBytes":64,"connectionsEnded":"N","cpuUsPerPush":"N","devices":20,"doubled":0,"floor":{"cpuRatio":"N","cpuUsPerWrite":"N","writesPerSecond":"N"},"latencyUs":{"count":"N","max":"N","p50":"N","p99":"N","p999":"N"},"lost":0,"mode":"ack","pushes":"N","pushesPerSecond":"N","rate":500,"replyUs":{"count":"N","max":"N","p50":"N","p99":"N","p999":"N"},"statuses":{"ACKED":"N"}}"#);
    let report = bench(&ground, &["--mode", "presence", "--logins", "500", "--pid", &pid]).await;
    insta::assert_snapshot!(shape(&report), @r#"{"cpuUsPerLogin":"N","devices":20,"loginUs":{"count":"N","max":"N","p50":"N","p99":"N","p999":"N"},"loginsPerSecond":"N","mode":"presence","rate":500,"subscribers":[{"doubled":0,"lagUs":{"count":"N","max":"N","p50":"N","p99":"N","p999":"N"},"lost":0,"node":"node-1"}]}"#);
}

#[tokio::test]
async fn every_way_of_pushing_is_measured_and_nothing_is_lost() {
    let ground = Ground::new().await;
    for mode in ["stream", "batch", "unary", "many", "broadcast", "ack"] {
        let report = bench(&ground, &["--mode", mode]).await;
        assert_eq!((&report["mode"], &report["devices"], &report["bodyBytes"]), (&mode.into(), &20.into(), &64.into()));
        assert_eq!(
            (&report["lost"], &report["doubled"], &report["connectionsEnded"]),
            (&0.into(), &0.into(), &0.into())
        );
        assert!(report["pushes"].as_u64().unwrap() > 0, "{report}");
        let outcome = if mode == "ack" { "ACKED" } else { "SENT" };
        let statuses = report["statuses"].as_object().unwrap();
        assert!(statuses.keys().eq([outcome]), "{report}");
        let latency = |name: &str| report["latencyUs"][name].as_f64().unwrap();
        assert!(0.0 < latency("p50") && latency("p50") <= latency("p99") && latency("p99") <= latency("p999"));
        assert!(report["latencyUs"]["count"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(report.get("replyUs").is_some(), mode == "ack", "{report}");
        let absent = ["rate", "floor", "cpuUsPerPush", "localUs", "forwardedUs", "nodes", "processes", "tally"];
        assert!(absent.iter().all(|name| report.get(name).is_none()), "{report}");
    }
}

#[tokio::test]
async fn a_rate_is_kept_to_and_the_process_and_the_floor_are_measured() {
    let ground = Ground::new().await;
    let pid = std::process::id().to_string();
    let report = bench(&ground, &["--rate", "500", "--pid", &pid, "--floor"]).await;
    assert_eq!(report["rate"], 500);
    // 100 ms and 300 ms of it, each push once.
    let sent = outcome(&report, "SENT");
    assert!((190..=210).contains(&sent), "{report}");
    assert!(report["cpuUsPerPush"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["floor"]["cpuRatio"].as_f64().unwrap() > 0.0, "{report}");
}

#[tokio::test]
async fn a_process_that_is_not_there_is_2_and_devices_that_are_not_let_in_are_4() {
    let ground = Ground::new().await;
    let done = ground.run(&[&["bench", "--pid", "4194305"], &SHORT[..]].concat()).await;
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("--pid 4194305"), "{done:?}");
    let ground = Ground::with(|config| config.device.max_connections = 5).await;
    let done = ground.run(&[&["bench"], &SHORT[..]].concat()).await;
    assert_eq!(done.code, 4, "{done:?}");
}

#[tokio::test]
async fn devices_come_by_tls_and_trust_the_file_that_is_named() {
    let authority = Authority::new();
    let ground = Ground::with(|config| authority.serve(config)).await;
    let ca = authority.text("ca.pem");
    // The port is told by GetHost; the certificate is for 127.0.0.1, too.
    let report = bench(&ground, &["--tls", "--ca", &ca, "--mode", "ack"]).await;
    assert!(outcome(&report, "ACKED") > 0 && report["lost"] == 0, "{report}");
    // By a name, of whose addresses only one listens.
    let port = ground.server.addresses.device_tls.unwrap().port();
    let report = bench(&ground, &["--tls", "--ca", &ca, "--connect", &format!("localhost:{port}")]).await;
    assert!(outcome(&report, "SENT") > 0, "{report}");
    let done = ground.run(&[&["bench", "--tls"], &SHORT[..]].concat()).await;
    assert_eq!(done.code, 4, "the system's certificates don't sign it: {done:?}");
    let done = ground.run(&[&["bench", "--tls", "--ca", "/nonexistent"], &SHORT[..]].concat()).await;
    assert_eq!((done.code, done.stderr.contains("/nonexistent")), (2, true), "{done:?}");
}

#[tokio::test]
async fn devices_of_a_gateway_that_checks_tokens_sign_them_themselves_or_have_them_from_a_file() {
    let keys = tempfile::tempdir().unwrap();
    let (good, other) = (keys.path().join("good"), keys.path().join("other"));
    std::fs::write(&good, "a secret of forty bytes, not one fewer!!").unwrap();
    std::fs::write(&other, "a secret that the gateway has not: 40 b.").unwrap();
    let key = good.clone();
    let ground = Ground::with(|config| {
        config.auth.mode = Some(AuthMode::Token);
        config.auth.keys = vec![key];
        config.auth.audience = Some("*".to_owned());
    })
    .await;
    let report = bench(&ground, &["--token-key", good.to_str().unwrap()]).await;
    assert!(outcome(&report, "SENT") > 0 && report["lost"] == 0, "{report}");

    let done = ground.run(&[&["bench", "--token-key", other.to_str().unwrap()], &SHORT[..]].concat()).await;
    assert_eq!(done.code, 3, "{done:?}");
    assert!(done.stderr.contains("b-0000") && done.stderr.contains("isn't let in"), "{done:?}");

    let mut lines = String::new();
    for number in 0..20 {
        let uid = format!("device-{number}");
        let token = ground.home.run(&["token", &uid, "--key", good.to_str().unwrap()]).await;
        lines += &format!("{uid}\t{}\n", token.stdout.trim());
    }
    let file = ground.home.write("credentials", &lines);
    let listed = ["bench", "--json", "--duration", "300ms", "--warm-up", "100ms", "--credentials", &file];
    let done = ground.run(&[&listed[..], &["--devices", "20"]].concat()).await;
    assert_eq!(done.code, 0, "{done:?}");
    assert!(outcome(&done.json()[0], "SENT") > 0, "{done:?}");

    let done = ground.run(&[&listed[..], &["--devices", "21"]].concat()).await;
    assert_eq!((done.code, done.stderr.contains("has 20 lines, for 21 devices")), (2, true), "{done:?}");
    ground.home.write("credentials", "device-0 token\nalone\n");
    let done = ground.run(&[&listed[..], &["--devices", "2"]].concat()).await;
    assert_eq!((done.code, done.stderr.contains("line 2 isn't")), (2, true), "{done:?}");
}

#[tokio::test]
async fn presence_is_measured_from_logins_at_a_rate_to_the_changes_at_each_subscriber() {
    let ground = Ground::new().await;
    let urls = format!("{0},{0}", ground.url);
    let pid = std::process::id().to_string();
    let named = ["--control", &urls, "--secret-file", &ground.secret];
    let presence = ["bench", "--json", "--mode", "presence", "--devices", "50", "--logins", "1000", "--pid", &pid];
    // Somebody who comes and goes meanwhile is none of its devices.
    let _other = ground.server.login("other").await;
    let done = ground.home.run(&[&presence[..], &named].concat()).await;
    assert_eq!((done.code, &*done.stderr), (0, ""), "{done:?}");
    let report = &done.json()[0];
    assert_eq!(
        (&report["mode"], &report["devices"], &report["rate"], &report["loginUs"]["count"]),
        (&"presence".into(), &50.into(), &1000.into(), &50.into())
    );
    // The first is due at once, the last 49 ms later.
    let rate = report["loginsPerSecond"].as_f64().unwrap();
    assert!(0.0 < rate && rate <= 50.0 / 0.049, "{report}");
    assert!(report["cpuUsPerLogin"].as_f64().unwrap() > 0.0, "{report}");
    let subscribers = report["subscribers"].as_array().unwrap();
    assert_eq!(subscribers.len(), 2);
    for subscriber in subscribers {
        assert_eq!(
            (&subscriber["node"], &subscriber["lost"], &subscriber["doubled"], &subscriber["lagUs"]["count"]),
            (&"node-1".into(), &0.into(), &0.into(), &50.into())
        );
        assert!(subscriber["lagUs"]["p50"].as_f64().unwrap() > 0.0, "{report}");
    }
}

#[tokio::test]
async fn a_device_that_was_online_before_gives_no_change_and_that_is_1() {
    let ground = Ground::with(|config| config.device.connections_per_uid = 2).await;
    let _there = ground.server.login("b-000003").await;
    let done = ground.run(&[&["bench", "--json", "--mode", "presence"], &SHORT[..]].concat()).await;
    assert_eq!(done.code, 1, "{done:?}");
    let subscriber = &done.json()[0]["subscribers"][0];
    assert_eq!((&subscriber["lost"], &subscriber["lagUs"]["count"]), (&1.into(), &19.into()));
}

#[tokio::test]
async fn what_pushes_need_does_not_go_with_presence() {
    let ground = Ground::new().await;
    for wrong in [&["--rate", "5"][..], &["--floor"], &["--start-at", "2030-01-01T00:00:00Z"]] {
        let done = ground.run(&[&["bench", "--mode", "presence"], wrong].concat()).await;
        assert_eq!((done.code, done.complaint().contains("--mode presence")), (2, true), "{done:?}");
    }
}
