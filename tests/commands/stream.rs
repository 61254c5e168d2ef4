//! `plex push --stream`: JSON lines in, JSON lines out.

use serde_json::{Value, json};

use super::Ground;

/// The results by their id, as numbers.
fn by_id(lines: Vec<Value>) -> Vec<(u64, Value)> {
    let mut results: Vec<_> =
        lines.into_iter().map(|line| (line["id"].as_str().unwrap().parse().unwrap(), line)).collect();
    results.sort_by_key(|(id, _)| *id);
    results
}

#[tokio::test]
async fn each_line_is_pushed_and_has_its_result() {
    let ground = Ground::new().await;
    let mut device = ground.server.login("alice").await;
    let input = concat!(
        "{\"uid\":\"alice\",\"uri\":\"/one\",\"body\":\"first\"}\n",
        "\n",
        "{\"uid\":\"nobody\",\"uri\":\"/two\",\"id\":\"70\"}\n",
        "{\"uid\":\"alice\",\"uri\":\"/heartbeat\"}\n",
        "no JSON\n",
        "{\"uid\":\"alice\",\"uri\":\"/six\",\"id\":9}"
    );
    let pushed = ground.feed(&["push", "--stream"], input).await;
    assert_eq!((pushed.code, &*pushed.stderr), (1, ""), "not all were sent");
    let results = by_id(pushed.json());
    let statuses: Vec<_> = results.iter().map(|(id, line)| (*id, line["status"].as_str().unwrap())).collect();
    assert_eq!(statuses, [(1, "SENT"), (4, "INVALID"), (5, "INVALID"), (9, "SENT"), (70, "OFFLINE")]);
    assert!(results[1].1["error"].as_str().unwrap().starts_with("uri"), "{results:?}");
    assert!(results[2].1["error"].as_str().unwrap().starts_with("line 5: "), "{results:?}");
    for (uri, result) in [("/one", 0), ("/six", 3)] {
        let message = device.next().await;
        assert_eq!((&*message.uri, json!(message.seq.to_string())), (uri, results[result].1["seq"].clone()));
    }
}

#[tokio::test]
async fn an_ack_timeout_waits_for_the_reply_and_all_good_is_0() {
    let ground = Ground::new().await;
    let mut device = ground.server.login("alice").await;
    let input = r#"{"uid":"alice","uri":"/ask","ackTimeout":"1m","id":"5"}"#;
    let answering = async {
        let seq = device.next().await.seq;
        device.ack(seq, "fine").await;
        seq
    };
    let (pushed, seq) = tokio::join!(ground.feed(&["push", "--stream", "--json"], input), answering);
    let expected =
        json!({"id": "5", "status": "ACKED", "seq": seq.to_string(), "connections": 1, "reply": "fine", "error": ""});
    assert_eq!((pushed.code, pushed.json()), (0, vec![expected]));
    let nothing = ground.feed(&["push", "--stream"], "").await;
    assert_eq!((nothing.code, &*nothing.stdout, &*nothing.stderr), (0, "", ""));
}

#[tokio::test]
async fn many_lines_keep_their_order() {
    let ground = Ground::new().await;
    let mut device = ground.server.login("alice").await;
    let lines: String =
        (1..=5_000).map(|n| format!("{{\"uid\":\"alice\",\"uri\":\"/n\",\"body\":\"{n}\"}}\n")).collect();
    let reading = async {
        for n in 1..=5_000 {
            assert_eq!(device.next().await.body, n.to_string());
        }
    };
    let (pushed, ()) = tokio::join!(ground.feed(&["push", "--stream"], &lines), reading);
    let ids: Vec<_> = pushed.json().iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect();
    assert!(ids.iter().map(|id| id.parse::<u64>().unwrap()).eq(1..=5_000), "in the order of the lines");
    assert_eq!(pushed.code, 0);
}

#[tokio::test]
async fn a_gateway_that_refuses_is_3() {
    let ground = Ground::new().await;
    let secret = ground.home.write("other", "another");
    let named = ["push", "--stream", "--control", &ground.url, "--secret-file", &secret];
    let process = super::TestProcess::fed(ground.home.command(&named), "{\"uid\":\"a\",\"uri\":\"/x\"}\n");
    assert_eq!(process.finished().await.code, 3);
}
