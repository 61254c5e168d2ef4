//! A gateway that can be started again, an example that calls it, and devices.

use std::{
    io::Write,
    net::SocketAddr,
    process::{ChildStdin, Command},
    thread,
};

use serde_json::Value;
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::AbortHandle,
    time::timeout,
};

use crate::{
    common::{
        Message, PATIENCE, TestDevice,
        process::{Finished, Home, TestGateway, TestProcess, fixed_ports, own_loopback},
    },
    example::Example,
};

/// A gateway that can be started again, and an example that calls it.
pub struct Ground {
    pub example: Example,
    pub home: Home,
    pub config: String,
    pub gateway: TestGateway,
}

/// A device that notes each push, and answers those to `/question` and `/refused`.
pub struct Device {
    pushes: UnboundedReceiver<Message>,
    task: AbortHandle,
}

impl Ground {
    pub async fn new(example: Example) -> Self {
        let home = Home::new();
        let config = home.write("backends.toml", &fixed_ports(own_loopback()));
        let gateway = serve(&home, &config).await;
        Self { example, home, config, gateway }
    }

    /// The example, called with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.example.command(self.gateway.control, &self.home.secret(), arguments)
    }

    /// What it prints for these arguments.
    pub async fn ask(&self, arguments: &[&str]) -> Vec<Value> {
        answers(TestProcess::spawn(self.command(arguments)).finished().await)
    }

    /// What it prints for these arguments and this input.
    pub async fn ask_of(&self, arguments: &[&str], input: String) -> Vec<Value> {
        let (process, stdin) = TestProcess::piped(self.command(arguments));
        feed(stdin, input);
        answers(process.finished().await)
    }

    pub async fn device(&self, uid: &str) -> Device {
        Device::login(self.gateway.device(), uid).await
    }

    /// The gateway again, on the same ports and with what it kept.
    pub async fn again(self) -> Self {
        let Self { example, home, config, gateway } = self;
        drop(gateway);
        let gateway = serve(&home, &config).await;
        Self { example, home, config, gateway }
    }
    /// The gateway's own word for it.
    pub async fn online(&self, uid: &str) -> bool {
        self.home.ask(&self.gateway, &["online", uid]).await.code == 0
    }
}

pub async fn serve(home: &Home, config: &str) -> TestGateway {
    let more = ["--set", "presence.settle=3s", "--set", "device.write_timeout=1m", "--set", "drain.timeout=10s"];
    TestGateway::of(home.spawn(&[&["serve", "--config", config], &more[..]].concat())).await
}

/// What a call has printed that went well.
#[track_caller]
pub fn answers(ended: Finished) -> Vec<Value> {
    assert_eq!((ended.code, &*ended.stderr), (0, ""), "{ended:?}");
    ended.json()
}

/// Writes all of it while somebody else reads what comes of it.
pub fn feed(mut stdin: ChildStdin, text: String) {
    thread::spawn(move || stdin.write_all(text.as_bytes()).expect("it reads its input"));
}

impl Device {
    pub async fn login(address: SocketAddr, uid: &str) -> Self {
        let mut device = TestDevice::login(address, uid).await;
        let (send, pushes) = unbounded_channel();
        let task = tokio::spawn(async move {
            loop {
                // However long that takes; a frame has to be whole in time, though.
                device.stream.peek(&mut [0]).await.expect("no reset");
                let Some(message) = device.maybe_next().await else { return };
                match &*message.uri {
                    "/question" => device.ack(message.seq, &format!("re: {}", message.body)).await,
                    "/refused" => device.nack(message.seq, "no").await,
                    _ => {}
                }
                let _ = send.send(message);
            }
        });
        Self { pushes, task: task.abort_handle() }
    }

    pub async fn next(&mut self) -> Message {
        timeout(PATIENCE, self.pushes.recv()).await.expect("a push in time").expect("a push before the end")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.task.abort();
    }
}
