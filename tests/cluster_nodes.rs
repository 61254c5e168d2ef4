//! Three nodes, each a process of its own, on one real NATS server: what becomes of devices, presence and pushes when
//! nodes come, go, die or stand still, and when devices move between them.
#![cfg(feature = "nats")]

mod common;

#[allow(dead_code)]
#[path = "../benches/cluster/crowd.rs"]
mod crowd;
#[path = "cluster_nodes/ends.rs"]
mod ends;
#[path = "cluster_nodes/frozen.rs"]
mod frozen;
#[path = "cluster_nodes/joining.rs"]
mod joining;
#[path = "cluster_nodes/joins.rs"]
mod joins;
#[path = "cluster_nodes/moves.rs"]
mod moves;
#[path = "cluster_nodes/pushes.rs"]
mod pushes;
#[path = "cluster_nodes/refused.rs"]
mod refused;
#[path = "cluster_nodes/starts.rs"]
mod starts;

use common::{
    node_processes::Gateways,
    watch::{Watch, everyone, word},
};
use plex::proto::OnlineStatusEvent;

/// A subscriber of everyone at each of these nodes, which has told what was before.
async fn watches(nodes: &mut Gateways, at: &[usize]) -> Vec<Watch> {
    let mut watches = Vec::new();
    for index in at {
        watches.push(Watch::live(&mut nodes.backends[*index], everyone()).await.0);
    }
    watches
}

/// The events before that of `uid` coming online.
async fn before(watch: &mut Watch, uid: &str) -> Vec<OnlineStatusEvent> {
    let (mut told, last) = (Vec::new(), format!("+{uid}"));
    loop {
        let event = watch.event().await;
        if word(&event) == last {
            return told;
        }
        told.push(event);
    }
}
