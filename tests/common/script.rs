//! A gateway of the test's own, for what a real one never does.

use serde_json::{Value, json};
use tokio::{net::TcpListener, time::timeout};

use super::{PATIENCE, TestDevice};

/// A gateway that says what the test makes it say.
pub struct Script {
    pub listener: TcpListener,
    pub address: String,
}

impl Script {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Self { listener, address }
    }

    /// The gateway's end of the next connection, and how the device shows itself there. (Frames are the same in both
    /// directions.)
    pub async fn accept(&self) -> (TestDevice, Value) {
        let (stream, _) = timeout(PATIENCE, self.listener.accept()).await.expect("a device comes").unwrap();
        let mut end = TestDevice { stream, little_endian: false };
        let auth = end.next().await;
        (end, serde_json::from_slice(&auth.raw).unwrap())
    }

    /// Accepts a device and lets it in.
    pub async fn welcome(&self, welcome: &Value) -> TestDevice {
        let (mut end, _) = self.accept().await;
        say(&mut end, "/auth/success", welcome).await;
        end
    }
}

/// Says one message, as a gateway does.
pub async fn say(end: &mut TestDevice, uri: &str, body: &Value) {
    end.send(&json!({"uri": uri, "body": body.to_string()}).to_string()).await;
}
