//! A connection that can be cut: what stands between two who speak TCP.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
};

/// Passes bytes on, until it is cut. Ended when it is dropped.
pub struct Link {
    pub address: SocketAddr,
    whole: watch::Sender<bool>,
    target: watch::Sender<SocketAddr>,
    /// How many connections were accepted, those included that were closed at once.
    accepted: watch::Receiver<usize>,
    task: AbortHandle,
}

impl Link {
    /// Between whoever connects to its own address and `target`.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (whole, mut is_whole) = watch::channel(true);
        let (count, accepted) = watch::channel(0);
        let (target, leads_to) = watch::channel(target);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    biased;
                    changed = is_whole.changed() => match changed {
                        // Dropping both ends is what a cut looks like from either.
                        Ok(()) if !*is_whole.borrow_and_update() => connections.shutdown().await,
                        Ok(()) => {}
                        Err(_) => return,
                    },
                    stream = listener.accept() => {
                        let (mut near, _) = stream.unwrap();
                        count.send_modify(|count| *count += 1);
                        let target = *leads_to.borrow();
                        if *is_whole.borrow() {
                            connections.spawn(async move {
                                if let Ok(mut far) = TcpStream::connect(target).await {
                                    let _ = copy_bidirectional(&mut near, &mut far).await;
                                }
                            });
                        }
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Self { address, whole, target, accepted, task: task.abort_handle() }
    }

    /// Breaks all connections, and closes each new one at once.
    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    /// Lets new connections through.
    pub fn mend(&self) {
        self.whole.send_replace(true);
    }

    /// Leads new connections elsewhere.
    pub fn lead(&self, target: SocketAddr) {
        self.target.send_replace(target);
    }

    /// Waits for another try to connect from now on.
    pub async fn tried(&mut self) {
        let before = *self.accepted.borrow_and_update();
        self.accepted.wait_for(|count| *count > before).await.expect("the link is there");
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}
