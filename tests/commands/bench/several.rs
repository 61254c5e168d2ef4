//! Several processes that push at the same time, and the sum of what they tell.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::{Ground, outcome, shape};

/// Pushes from `start` on, by devices of this prefix.
fn arguments<'a>(start: &'a str, prefix: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let run = ["bench", "--json", "--devices", "10", "--rate", "500", "--duration", "400ms", "--warm-up", "100ms"];
    [&run[..], &["--start-at", start, "--prefix", prefix], more].concat()
}

/// As `--start-at` takes it: when all devices are sure to be connected.
fn soon() -> String {
    humantime::format_rfc3339(SystemTime::now() + Duration::from_secs(4)).to_string()
}

#[tokio::test]
async fn processes_that_began_together_add_up() {
    let ground = Ground::new().await;
    let (start, pid) = (soon(), std::process::id().to_string());
    let one = ground.spawn(&arguments(&start, "one-", &["--pid", &pid]));
    let two = ground.spawn(&arguments(&start, "two-", &["--pid", &pid]));
    let (one, two) = (one.finished().await, two.finished().await);
    assert_eq!((one.code, two.code), (0, 0), "{one:?} {two:?}");
    let files = [ground.home.write("one.json", &one.stdout), ground.home.write("two.json", &two.stdout)];
    let (one, two) = (one.json().remove(0), two.json().remove(0));

    // Nobody is asked: there is no gateway to it.
    let merged = ground.home.run(&["bench", "--json", "--merge", &files[0], &files[1]]).await;
    assert_eq!((merged.code, &*merged.stderr), (0, ""), "{merged:?}");
    let whole = &merged.json()[0];
    let sum = |of: &dyn Fn(&Value) -> u64| of(&one) + of(&two);
    assert_eq!((&whole["processes"], &whole["devices"], &whole["rate"]), (&2.into(), &20.into(), &1000.into()));
    for of in [
        &(|report: &Value| report["pushes"].as_u64().unwrap()) as &dyn Fn(&Value) -> u64,
        &|report| report["latencyUs"]["count"].as_u64().unwrap(),
        &|report| outcome(report, "SENT"),
    ] {
        assert!(of(whole) > 0 && of(whole) == sum(of), "{whole}");
    }
    assert_eq!((&whole["lost"], &whole["doubled"]), (&0.into(), &0.into()));
    let p50 = |report: &Value| report["latencyUs"]["p50"].as_f64().unwrap();
    let between = p50(&one).min(p50(&two))..=p50(&one).max(p50(&two));
    assert!(between.contains(&p50(whole)), "{between:?}: {whole}");
    let max = |report: &Value| report["latencyUs"]["max"].as_f64().unwrap();
    assert!(max(whole) >= max(&one).max(max(&two)) * 0.99, "{whole}");
    // Both looked at one process, whose CPU counts once.
    let cpu = |report: &Value| report["cpuUsPerPush"].as_f64().unwrap() * report["pushes"].as_f64().unwrap();
    assert!((cpu(whole) - cpu(&one).max(cpu(&two))).abs() < 1.0, "{whole}");
    assert!(whole.get("tally").is_none(), "{whole}");
    insta::assert_snapshot!(shape(&one), @r#"{"bodyBytes":64,"connectionsEnded":"N","cpuUsPerPush":"N","devices":10,"doubled":0,"latencyUs":{"count":"N","max":"N","p50":"N","p99":"N","p999":"N"},"lost":0,"mode":"stream","pushes":"N","pushesPerSecond":"N","rate":500,"statuses":{"SENT":"N"},"tally":"TALLY"}"#);
    insta::assert_snapshot!(shape(whole), @r#"{"bodyBytes":64,"connectionsEnded":"N","cpuUsPerPush":"N","devices":20,"doubled":0,"latencyUs":{"count":"N","max":"N","p50":"N","p99":"N","p999":"N"},"lost":0,"mode":"stream","processes":2,"pushes":"N","pushesPerSecond":"N","rate":1000,"statuses":{"SENT":"N"}}"#);
}

#[tokio::test]
async fn reports_that_are_not_of_one_window_are_not_added_up() {
    let ground = Ground::new().await;
    let (start, later) = (soon(), soon());
    let runs = [
        arguments(&start, "a-", &[]),
        arguments(&later, "b-", &[]),
        arguments(&start, "c-", &["--body", "100"]),
        arguments(&start, "d-", &["--mode", "batch"]),
    ];
    let runs = runs.map(|arguments| ground.spawn(&arguments));
    let mut files = Vec::new();
    for (run, name) in runs.into_iter().zip(["a", "b", "c", "d"]) {
        files.push(ground.home.write(name, &run.finished().await.stdout));
    }
    let alone = ground.run(&["bench", "--json", "--devices", "5", "--duration", "100ms", "--warm-up", "10ms"]).await;
    files.push(ground.home.write("alone", &alone.stdout));
    files.push(ground.home.write("nonsense", "nonsense"));
    files.push(ground.home.text("missing"));
    let names =
        ["another --start-at", "another --body", "another --mode", "without --start-at", "isn't one report", ""];
    for (file, names) in files[1..].iter().zip(names) {
        let done = ground.home.run(&["bench", "--merge", &files[0], file]).await;
        let complaint = done.refusal();
        assert!(complaint.contains(names) && complaint.contains(file), "{complaint}");
    }
}

#[tokio::test]
async fn who_is_not_ready_at_the_start_says_so() {
    let ground = Ground::new().await;
    let late = ground.run(&arguments("2026-01-01T00:00:00Z", "a-", &[])).await;
    assert_eq!((late.code, late.complaint().contains("--start-at was ")), (1, true), "{late:?}");
    let nonsense = ground.run(&["bench", "--start-at", "noon"]).await;
    assert_eq!((nonsense.code, nonsense.stderr.contains("--start-at")), (2, true), "{nonsense:?}");
}
