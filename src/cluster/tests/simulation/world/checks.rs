//! What has to hold: all the time, and at the end.

use super::*;

impl World {
    pub(super) fn note_ended(&mut self) {
        for (incarnation, name) in std::mem::take(&mut self.engine.ended) {
            self.outcome.deaths += 1;
            let node: usize = name.as_str()[1..].parse().unwrap();
            let healthy = self.processes[node].as_ref().is_some_and(|process| {
                process.cluster.incarnation() == incarnation && self.now > self.cut_until[node] + 5_000
            });
            if healthy && self.now > self.frozen_until[node] + 5_000 && self.now > self.engine_back + 10_000 {
                self.outcome.healthy_ended += 1;
            }
        }
    }

    /// The log has displaced a connection: its node closes it.
    pub(super) fn displace(&mut self, node: usize, number: u32) {
        let Some(gone) = self.open.remove(&(node, number)) else { return };
        let process = self.processes[node].as_ref().expect("it has just spoken");
        process.cluster.release(&uid_of(gone.uid), ConnectionNumber(number), EndReason::Replaced);
        let close = CLOSE_LOGINS + if self.leader_jumped { LEADER_AHEAD } else { 0 };
        // It may have closed meanwhile.
        let newer = self.logins.iter().filter(|(other, accepted)| {
            **other != number && accepted.0 == gone.uid && accepted.1 + close > gone.accepted
        });
        let ageless = self.ageless.iter().any(|number| {
            let (uid, accepted) = self.logins[number];
            uid == gone.uid && accepted + AGELESS > gone.accepted
        });
        if newer.count() == 0 && !ageless {
            let others: Vec<_> = self.open.iter().filter(|(_, open)| open.uid == gone.uid).collect();
            self.broken(format!("an older connection took the place of {node}:{number}, {gone:?}: {others:?}"));
        }
    }

    /// Whether what is told can't follow from what was told at `place`: that log is gone, or what comes after that place,
    /// or it has since been made void because nobody knew the state. Freezes and outages alone are no reason.
    pub(super) fn could_not_go_on(&self, place: Option<(u64, u64)>) -> bool {
        let Some((log, folded)) = place else { return false };
        let stream = self.engine.stream.as_ref().filter(|stream| stream.log.id == log);
        stream.is_none_or(|stream| stream.first > folded || stream.voided > folded)
    }

    pub(super) fn check(&mut self) {
        let Some(stream) = self.engine.stream.clone() else { return self.broken("no log".into()) };
        let reference = held(&stream.state);
        let truth: BTreeMap<usize, BTreeSet<(usize, u32)>> =
            self.open.iter().fold(BTreeMap::new(), |mut truth, ((node, number), open)| {
                truth.entry(open.uid).or_default().insert((*node, *number));
                truth
            });
        if reference != truth {
            self.broken(format!("the log says {reference:?}, but {truth:?} is true"));
        }
        for (uid, connections) in &truth {
            if connections.len() > usize::from(self.connections_per_uid) {
                self.broken(format!("u{uid} has {connections:?}"));
            }
        }
        let processes = std::mem::take(&mut self.processes);
        for (node, process) in processes.iter().enumerate() {
            let process = process.as_ref().expect("all were started");
            let presence = process.cluster.0.presence();
            if exact(&presence.state) != exact(&stream.state) || presence.standing != Standing::InStep {
                let (standing, here, there) = (presence.standing, exact(&presence.state), exact(&stream.state));
                let other: Vec<_> = here.iter().zip(there).filter(|(here, there)| *here != there).collect();
                self.broken(format!(
                    "node {node} ({standing:?}) differs from the log in {other:?}: {:?}",
                    process.member
                ));
            }
            drop(presence);
            let follower = &process.follower;
            let online: BTreeSet<_> = follower.online.keys().copied().collect();
            if !follower.live || online != truth.keys().copied().collect() {
                self.broken(format!("who follows node {node} knows {online:?}, live: {}", follower.live));
            }
            let told: BTreeSet<_> = follower.changes.iter().copied().collect();
            let from = follower.changes.iter().map(|(epoch, _)| *epoch).min().unwrap_or(u64::MAX);
            let all = self.engine.changes.iter().map(|change| (change.epoch, uid_index(&change.uid)));
            let missed: Vec<_> = all.filter(|(epoch, uid)| *epoch > from && !told.contains(&(*epoch, *uid))).collect();
            if !missed.is_empty() && !self.engine.doomed {
                self.broken(format!("who follows node {node} wasn't told {missed:?}"));
            }
            self.outcome.resets += follower.resets;
        }
        let mut highest = BTreeMap::new();
        let changes = std::mem::take(&mut self.engine.changes);
        for change in &changes {
            let before = highest.insert(change.uid.clone(), change.epoch);
            if before.is_some_and(|before| before >= change.epoch) {
                self.broken(format!(
                    "the epochs of {} fall from {} to {}",
                    change.uid,
                    before.unwrap_or(0) / 1024,
                    change.epoch / 1024
                ));
            }
        }
        self.engine.changes = changes;
    }
}

/// Who holds what: by uid, (node, number).
fn held(state: &State) -> BTreeMap<usize, BTreeSet<(usize, u32)>> {
    let mut held = BTreeMap::new();
    for uid in 0..UIDS {
        let Some(entry) = state.directory.get(&format!("u{uid}")) else { continue };
        let connections = entry
            .connections()
            .iter()
            .map(|connection| (state.node(connection.node).name.as_str()[1..].parse().unwrap(), connection.number.0));
        held.insert(uid, connections.collect());
    }
    held
}

/// All that is known of each uid: its connections, oldest first, with their places, and its own.
fn exact(state: &State) -> Vec<String> {
    let uids = (0..UIDS).map(|uid| match state.directory.get(&format!("u{uid}")) {
        None => format!("u{uid}: offline"),
        Some(entry) => {
            let connections = entry
                .connections()
                .iter()
                .map(|held| (state.node(held.node).incarnation, held.number, held.epoch, held.accepted));
            format!("u{uid} {:?} {} {:?}", entry.since(), entry.epoch(), connections.collect::<Vec<_>>())
        }
    });
    uids.collect()
}
