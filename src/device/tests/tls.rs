//! Sessions over TLS, with a paused clock.

use tokio::io::AsyncWriteExt;

use super::*;
use crate::device::tls::tests::{Client, gateway};

impl Node {
    /// A device that has done its handshake, over a pipe that holds `room` bytes; and its connection's task.
    async fn shake(&self, room: usize) -> (Client, JoinHandle<()>) {
        let (near, far) = pipe(room);
        let (tls, mut client) = (gateway(near), Client::new(far, &rustls::version::TLS13));
        let (done, ()) = tokio::join!(tls.handshake(), client.handshake());
        done.unwrap();
        let stranger = Stranger::new(&self.devices);
        let remote = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        (client, tokio::spawn(connection(self.devices.clone(), tls, remote, stranger)))
    }

    async fn shake_and_login(&self, room: usize) -> (Client, JoinHandle<()>) {
        let (mut client, task) = self.shake(room).await;
        client.send(r#"{"uri":"/auth/server","body":"alice","v":2}"#).await;
        client.until("/auth/success").await;
        (client, task)
    }
}

impl Client {
    async fn send(&mut self, message: &str) {
        let frame = [&u32::try_from(message.len()).unwrap().to_be_bytes()[..], message.as_bytes()].concat();
        let record = self.record(&frame);
        self.far.write_all(&record).await.unwrap();
    }

    /// Reads until a frame with this in it has come; gives the text up to then.
    async fn until(&mut self, part: &str) -> String {
        let mut text = String::new();
        while !text.contains(part) {
            assert!(patient(self.receive()).await > 0, "{part} in {text}");
            text += &String::from_utf8_lossy(&self.text());
        }
        text
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_says_its_end_while_it_is_asked_about_takes_its_question_back() {
    let node = Node::new();
    let (mut client, task) = node.shake(64 * 1024).await;
    client.send(r#"{"uri":"/auth/server","body":"hang"}"#).await;
    client.send(r#"{"uri":"/heartbeat"}"#).await;
    settle().await;
    assert_eq!(node.oracle.under_way.load(SeqCst), 1);
    // The stream below stays open.
    client.tls.send_close_notify();
    let record = client.records();
    client.far.write_all(&record).await.unwrap();
    settle().await;
    assert_eq!(node.oracle.under_way.load(SeqCst), 0);
    patient(task).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_held_back_alone_makes_a_device_slow() {
    let node = Node::with(|config| config.write_timeout = seconds(5));
    let (client, task) = node.shake_and_login(2_000).await;
    // All of it is taken by TLS, and none of it is in the outbox.
    let outcome = node.push("alice", &"x".repeat(10_000));
    assert_eq!(outcome.status, PushStatus::Sent);
    let (took, ()) = timed(async {
        while node.is_online("alice") {
            settle().await;
        }
    })
    .await;
    assert!(took >= seconds(5) && took < seconds(6), "{took:?}");
    // A device that takes a little now and then isn't.
    patient(task).await.unwrap();
    drop(client);
    let (mut client, _task) = node.shake_and_login(2_000).await;
    node.push("alice", &"y".repeat(15_000));
    for _ in 0..7 {
        tokio::time::sleep(seconds(3)).await;
        assert!(node.is_online("alice"));
        client.receive().await;
    }
    client.until(r#"y"}"#).await;
}

#[tokio::test(start_paused = true)]
async fn pushes_wait_behind_a_record_that_is_held_back() {
    let node = Node::new();
    let (mut client, _task) = node.shake_and_login(1_000).await;
    node.push("alice", &"x".repeat(5_000));
    for number in 0..40 {
        assert_eq!(node.push("alice", &format!("<{number}>")).status, PushStatus::Sent);
    }
    let text = client.until("<39>").await;
    let places: Vec<_> = (0..40).map(|number| text.find(&format!("<{number}>")).unwrap()).collect();
    assert!(places.is_sorted());
}

#[tokio::test(start_paused = true)]
async fn the_last_frame_and_the_word_of_the_end_arrive_through_a_full_socket() {
    let node = Node::new();
    let (mut client, task) = node.shake_and_login(500).await;
    node.push("alice", &"x".repeat(3_000));
    node.devices.hub.disconnect_here("alice", "");
    // What was taken has as much time as what is queued.
    tokio::time::sleep(seconds(5)).await;
    client.until("/plex/kick").await;
    client.receive().await;
    let end = std::io::Read::read(&mut client.tls.reader(), &mut [0]);
    assert!(end.is_ok_and(|count| count == 0), "close_notify, not just an end");
    drop(client);
    patient(task).await.unwrap();
}
