//! `plex bench`: every way of pushing, against a gateway that is small and short of time.

use serde_json::Value;

use super::Ground;

const SHORT: [&str; 8] = ["--devices", "20", "--duration", "300ms", "--warm-up", "100ms", "--prefix", "b-"];

async fn bench(ground: &Ground, arguments: &[&str]) -> Value {
    let done = ground.run(&[&["bench", "--json"], &SHORT[..], arguments].concat()).await;
    assert_eq!((done.code, &*done.stderr), (0, ""), "{done:?}");
    done.json().remove(0)
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
        assert_eq!(report.get("replyUs").is_some(), mode == "ack", "{report}");
        assert!(report.get("rate").is_none() && report.get("floor").is_none() && report.get("cpuUsPerPush").is_none());
    }
}

#[tokio::test]
async fn a_rate_is_kept_to_and_the_process_and_the_floor_are_measured() {
    let ground = Ground::new().await;
    let pid = std::process::id().to_string();
    let report = bench(&ground, &["--rate", "500", "--pid", &pid, "--floor"]).await;
    assert_eq!(report["rate"], 500);
    // 100 ms and 300 ms of it, each push once.
    let sent = report["statuses"]["SENT"].as_u64().unwrap();
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
