//! How soon presence is told: devices log in, and a subscriber at each node hears of it.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt, future::try_join_all};
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    ARRIVE, Run,
    pace::Clock,
    report::{Percentiles, latencies, table},
};
use crate::{
    cli::{Exit, Failure},
    client::{CallError, Control},
    proto::{OnlineStatusEvent, OnlineStatusKind, OnlineStatusRequest, OnlineStatusResponse},
};

/// The whole; its fields are what `--json` promises.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PresenceReport {
    mode: &'static str,
    devices: u32,
    /// Logins a second that were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u32>,
    logins_per_second: f64,
    /// From the meant time, before connecting, to `/auth/success`.
    login_us: Percentiles,
    subscribers: Vec<SubscriberReport>,
    /// Of all processes of the gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_us_per_login: Option<f64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SubscriberReport {
    node: String,
    /// From the device's sending its credential to the CHANGE.
    lag_us: Percentiles,
    /// Devices of which no CHANGE came, and changes that came twice.
    lost: u64,
    doubled: u64,
}

/// What one subscriber has heard.
struct Heard {
    lag: Histogram<u64>,
    online: Vec<bool>,
    changes: u64,
    doubled: u64,
}

/// What subscribers need to know of the devices.
struct Expected {
    numbers: HashMap<String, u32>,
    sent: Arc<[AtomicU64]>,
    clock: Clock,
}

/// Subscribes at each node, then logs all devices in.
pub(super) async fn measure(run: Run) -> Result<PresenceReport, Failure> {
    let devices = run.args.devices;
    let sent: Arc<[AtomicU64]> = (0..devices).map(|_| AtomicU64::new(0)).collect();
    let numbers = (0..devices).map(|number| (run.roster.uid(number), number)).collect();
    let expected = Expected { numbers, sent: Arc::clone(&sent), clock: run.clock };
    let mut fleet = run.fleet(sent).await?;
    let streams = try_join_all(run.controls.iter().map(subscribe)).await?;
    let heard: Vec<_> = streams.iter().map(|_| RefCell::new(Heard::new(devices))).collect();
    let bar = run.bars.bar(u64::from(devices), "logins");

    let (cpu, begun) = (run.processes.cpu()?, run.clock.now());
    let mut logged_in = Duration::ZERO;
    let logging_in = async {
        fleet.connect(devices, run.logins(), &bar).await?;
        logged_in = run.clock.now().saturating_sub(begun);
        all_heard(&heard, u64::from(devices)).await;
        Ok::<_, Failure>(())
    };
    let follow = |(stream, heard)| follow(stream, &expected, heard);
    tokio::select! {
        done = logging_in => done?,
        // They end only by a failure.
        failed = try_join_all(streams.into_iter().zip(&heard).map(follow)) => { failed?; }
    }
    let spent: Duration = run.processes.cpu()?.values().sum::<Duration>().saturating_sub(cpu.values().sum());
    bar.finish_and_clear();
    let received = fleet.finish(0, Duration::ZERO).await;

    let report = |(heard, node): (RefCell<Heard>, &String)| {
        let heard = heard.into_inner();
        let lost = heard.online.iter().filter(|online| !**online).count() as u64;
        SubscriberReport { node: node.clone(), lag_us: Percentiles::of(&heard.lag), lost, doubled: heard.doubled }
    };
    Ok(PresenceReport {
        mode: run.args.mode.name(),
        devices,
        rate: run.args.logins,
        logins_per_second: f64::from(devices) / logged_in.as_secs_f64().max(f64::MIN_POSITIVE),
        login_us: Percentiles::of(&received.logins),
        subscribers: heard.into_iter().zip(&run.names).map(report).collect(),
        cpu_us_per_login: (!cpu.is_empty()).then(|| spent.as_secs_f64() * 1e6 / f64::from(devices)),
    })
}

/// A stream of changes, from now on.
async fn subscribe(
    control: &Control,
) -> Result<impl Stream<Item = Result<OnlineStatusResponse, CallError>> + Unpin + use<>, Failure> {
    let request = OnlineStatusRequest { skip_snapshot: true, ..OnlineStatusRequest::default() };
    let stream = control.raw().online_status(request).await.map_err(CallError::from)?.into_inner();
    let mut stream = stream.map(|response| response.map_err(CallError::from));
    while let Some(response) = stream.next().await.transpose()? {
        if response.events.iter().any(|event| event.kind() == OnlineStatusKind::Live) {
            return Ok(stream);
        }
    }
    Err(ended())
}

async fn follow(
    mut stream: impl Stream<Item = Result<OnlineStatusResponse, CallError>> + Unpin,
    expected: &Expected,
    heard: &RefCell<Heard>,
) -> Result<(), Failure> {
    while let Some(response) = stream.next().await.transpose()? {
        let now = expected.clock.nanos();
        let mut heard = heard.borrow_mut();
        response.events.iter().for_each(|event| heard.take(event, now, expected));
    }
    Err(ended())
}

fn ended() -> Failure {
    Failure::new(Exit::Unreachable, "the gateway ended a stream of presence")
}

/// Waits until each subscriber has heard of all devices, or nothing more comes for some time.
async fn all_heard(heard: &[RefCell<Heard>], devices: u64) {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let changes = || heard.iter().map(|heard| heard.borrow().changes);
        if changes().all(|changes| changes >= devices) {
            return;
        }
        let now = changes().sum();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() >= ARRIVE {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Heard {
    fn new(devices: u32) -> Self {
        Self { lag: latencies(), online: vec![false; devices as usize], changes: 0, doubled: 0 }
    }

    /// Other devices than this run's are none of its business, and so is who goes.
    fn take(&mut self, event: &OnlineStatusEvent, now: u64, expected: &Expected) {
        let Some(&number) = expected.numbers.get(&event.uid) else { return };
        if event.kind() != OnlineStatusKind::Change || !event.online {
            return;
        }
        if std::mem::replace(&mut self.online[number as usize], true) {
            self.doubled += 1;
            return;
        }
        self.changes += 1;
        self.lag.saturating_record(now.saturating_sub(expected.sent[number as usize].load(Relaxed)));
    }
}

impl PresenceReport {
    /// Whether each login was told once to each subscriber.
    pub(super) fn is_clean(&self) -> bool {
        self.subscribers.iter().all(|subscriber| subscriber.lost == 0 && subscriber.doubled == 0)
    }

    pub(super) fn table(&self) -> String {
        let asked = self.rate.map_or_else(String::new, |rate| format!(" ({rate} asked for)"));
        let mut rows = vec![
            ("mode", format!("{}, {} devices", self.mode, self.devices)),
            ("logins", format!("{:.0} a second{asked}", self.logins_per_second)),
            ("a login", self.login_us.words()),
        ];
        for subscriber in &self.subscribers {
            let SubscriberReport { node, lag_us, lost, doubled } = subscriber;
            rows.push(("to a CHANGE", format!("{}; lost, doubled {lost}, {doubled}; at {node}", lag_us.words())));
        }
        if let Some(cpu) = self.cpu_us_per_login {
            rows.push(("gateway's CPU", format!("{cpu:.2} µs a login")));
        }
        table(&rows)
    }
}
