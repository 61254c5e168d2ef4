//! Keys that are fetched from a URL, and fetched again while the gateway runs.

use std::{sync::Arc, time::Duration};

use rand::RngExt;
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    keys::{self, Key},
    web::Web,
};

/// How often a key that was never seen makes the URL be asked: strangers may name any.
const ASK_INTERVAL: Duration = Duration::from_secs(10);

/// How long after a failure it is fetched again: after the first, and after many.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The keys of `auth.jwks_url`. Its task ends when it is dropped.
pub(super) struct KeysOfUrl {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

struct Shared {
    state: watch::Sender<State>,
    ask: Notify,
}

#[derive(Default)]
struct State {
    /// None: none could be had so far.
    keys: Option<Arc<[Key]>>,
    fetching: bool,
    /// How the last one went.
    worked: bool,
    /// When somebody last asked for it.
    asked: Option<Instant>,
}

/// What the last fetch came to, and asking again isn't allowed yet.
pub(super) struct Settled {
    pub(super) worked: bool,
}

impl State {
    fn may_be_asked(&self) -> bool {
        self.asked.is_none_or(|asked| asked.elapsed() >= ASK_INTERVAL)
    }
}

impl KeysOfUrl {
    /// Begins to fetch, on the runtime of `handle`: at once, then every `refresh`.
    pub(super) fn start(web: Arc<Web>, refresh: Duration, timeout: Duration, handle: &Handle) -> Self {
        let state = State { fetching: true, ..State::default() };
        let shared = Arc::new(Shared { state: watch::Sender::new(state), ask: Notify::new() });
        let task = handle.spawn(keep(Arc::clone(&shared), web, refresh, timeout));
        Self { shared, _task: AbortOnDropHandle::new(task) }
    }

    /// Those that were last had.
    pub(super) fn keys(&self) -> Option<Arc<[Key]>> {
        self.shared.state.borrow().keys.clone()
    }

    /// None: they are being fetched, or may be asked for.
    pub(super) fn settled(&self) -> Option<Settled> {
        let state = self.shared.state.borrow();
        (!state.fetching && !state.may_be_asked()).then_some(Settled { worked: state.worked })
    }

    /// Has them fetched, if that is allowed, and waits until no fetch is under way.
    pub(super) async fn asked(&self) {
        let asked = self.shared.state.send_if_modified(|state| {
            let ask = !state.fetching && state.may_be_asked();
            if ask {
                state.fetching = true;
                state.asked = Some(Instant::now());
            }
            ask
        });
        if asked {
            self.shared.ask.notify_one();
        }
        // The sender lives as long as `self`.
        let _ = self.shared.state.subscribe().wait_for(|state| !state.fetching).await;
    }
}

/// Fetches for ever.
async fn keep(shared: Arc<Shared>, web: Arc<Web>, refresh: Duration, timeout: Duration) {
    let mut last = Vec::new();
    let mut failures = 0;
    loop {
        let fetched = tokio::time::timeout(timeout, web.get())
            .await
            .unwrap_or_else(|_| Err("no answer within auth.timeout".into()));
        let changed = fetched.and_then(|body| {
            if body == last {
                return Ok(None);
            }
            let keys: Arc<[Key]> = keys::key_set(&body, false)?.into();
            last = body;
            Ok(Some(keys))
        });
        let worked = changed.is_ok();
        shared.state.send_modify(|state| {
            if let Ok(Some(keys)) = &changed {
                state.keys = Some(Arc::clone(keys));
            }
            (state.fetching, state.worked) = (false, worked);
        });
        match changed {
            Ok(Some(keys)) => tracing::info!(url = %web.url(), keys = keys.len(), "keys fetched"),
            Ok(None) => {}
            Err(problem) => {
                let kept = shared.state.borrow().keys.is_some();
                tracing::error!(url = %web.url(), problem, kept, "auth.jwks_url gives no keys");
            }
        }
        failures = if worked { 0 } else { failures + 1 };
        let pause = if worked { refresh } else { back_off(failures).min(refresh) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.ask.notified() => {}
        }
        shared.state.send_modify(|state| state.fetching = true);
    }
}

/// Twice as long with each failure, and up to a quarter less, so that nodes don't ask in step.
fn back_off(failures: u32) -> Duration {
    let (first, longest) = RETRY;
    let pause = first.saturating_mul(1 << (failures - 1).min(8)).min(longest);
    pause.mul_f64(rand::rng().random_range(0.75..=1.0))
}
