//! A connection that can be cut or frozen: what stands between two who speak TCP.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use super::PATIENCE;

/// Passes bytes on, until it is cut or frozen. Ended when it is dropped.
pub struct Link {
    pub address: SocketAddr,
    state: watch::Sender<State>,
    target: watch::Sender<SocketAddr>,
    /// How many connections were accepted, those included that were closed at once.
    accepted: watch::Receiver<usize>,
    trap: Trap,
    task: AbortHandle,
}

/// Hears what is sent, and freezes the link where that is so.
#[derive(Clone)]
struct Trap {
    heard: Arc<Mutex<Heard>>,
    link: watch::Sender<State>,
}

/// What those who connect have sent, in their order.
#[derive(Default)]
struct Heard {
    text: String,
    springs: Option<fn(&str) -> bool>,
}

/// So much is kept of what was sent: who sends more isn't listened to any more.
const HEARD_MAX: usize = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Whole,
    Frozen,
    Cut,
}

impl Link {
    /// Between whoever connects to its own address and `target`.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, mut is) = watch::channel(State::Whole);
        let (count, accepted) = watch::channel(0);
        let (target, leads_to) = watch::channel(target);
        let trap = Trap { heard: Arc::default(), link: state.clone() };
        let hears = trap.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    biased;
                    changed = is.changed() => match changed {
                        // Dropping both ends is what a cut looks like from either.
                        Ok(()) if *is.borrow_and_update() == State::Cut => connections.shutdown().await,
                        Ok(()) => {}
                        Err(_) => return,
                    },
                    stream = listener.accept() => {
                        let (near, _) = stream.unwrap();
                        count.send_modify(|count| *count += 1);
                        let target = *leads_to.borrow();
                        if *is.borrow() != State::Cut {
                            connections.spawn(pass(near, target, is.clone(), hears.clone()));
                        }
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Self { address, state, target, accepted, trap, task: task.abort_handle() }
    }

    /// Breaks all connections, and closes each new one at once.
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// A black hole: connections stay, new ones are accepted, and no byte passes in either direction. What was sent
    /// meanwhile arrives when it is mended, as after a network's outage.
    pub fn freeze(&self) {
        self.state.send_replace(State::Frozen);
    }

    /// Freezes by itself once what those who connect have sent is so, before the last of that is passed on.
    pub fn freeze_when(&self, springs: fn(&str) -> bool) {
        self.trap.heard().springs = Some(springs);
    }

    /// Waits until it is frozen.
    pub async fn is_frozen(&self) {
        let mut is = self.state.subscribe();
        let frozen = timeout(PATIENCE, is.wait_for(|state| *state == State::Frozen)).await;
        frozen.expect("it is frozen in time").expect("the link is there");
    }

    /// What those who connect have sent, in their order, what stands before a freeze included.
    pub fn sent(&self) -> String {
        self.trap.heard().text.clone()
    }

    /// Lets bytes and new connections through again.
    pub fn mend(&self) {
        self.state.send_replace(State::Whole);
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

impl Trap {
    /// What was read, and isn't passed on yet. It springs once.
    fn hear(&self, bytes: &[u8]) {
        let mut heard = self.heard();
        if heard.text.len() < HEARD_MAX {
            heard.text.push_str(&String::from_utf8_lossy(bytes));
        }
        let Heard { text, springs } = &mut *heard;
        if springs.take_if(|springs| springs(text)).is_some() {
            self.link.send_replace(State::Frozen);
        }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().expect("nobody panics while holding it")
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection, to the end of both its directions, or the failure of either.
async fn pass(near: TcpStream, target: SocketAddr, mut is: watch::Receiver<State>, trap: Trap) -> io::Result<()> {
    thawed(&mut is).await?;
    let far = TcpStream::connect(target).await?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
    }
    let ((near_reads, near_writes), (far_reads, far_writes)) = (near.into_split(), far.into_split());
    let hears = |bytes: &[u8]| trap.hear(bytes);
    tokio::try_join!(pump(near_reads, far_writes, is.clone(), hears), pump(far_reads, near_writes, is, |_| {}))?;
    Ok(())
}

/// One direction. What was read before a freeze and not yet written waits, too.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut is: watch::Receiver<State>,
    hear: impl Fn(&[u8]),
) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        thawed(&mut is).await?;
        let count = tokio::select! {
            biased;
            _ = is.changed() => continue,
            read = from.read(&mut buffer) => read?,
        };
        hear(&buffer[..count]);
        thawed(&mut is).await?;
        match count {
            0 => return to.shutdown().await,
            count => to.write_all(&buffer[..count]).await?,
        }
    }
}

async fn thawed(is: &mut watch::Receiver<State>) -> io::Result<()> {
    is.wait_for(|state| *state != State::Frozen).await.map(drop).map_err(|_| io::ErrorKind::ConnectionAborted.into())
}
