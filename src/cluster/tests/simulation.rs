//! The rules, run: some nodes, a log that loses, delays, stands still, is lost and rolled back, nodes that crash, freeze
//! and are cut off, devices that come, go and move; then quiet. All of it from one seed.

mod engine;
mod world;

use self::world::{Outcome, World};
use super::*;
use crate::cluster::rules::{Rule, Rules};

/// How many seeds are run: 200, or as many as `PLEX_SIMULATION_SEEDS` says.
fn seeds() -> u64 {
    std::env::var("PLEX_SIMULATION_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(200)
}

fn run(seed: u64, rules: Rules) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(World::new(seed, rules).run())
}

/// The sums over `seeds`: what was broken, and how often what happened.
fn run_all(seeds: std::ops::Range<u64>, rules: Rules) -> Outcome {
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let parts: Vec<_> = (0..threads)
        .map(|thread| {
            let seeds = seeds.clone();
            std::thread::spawn(move || {
                let mine = seeds.filter(|seed| seed % threads == thread);
                mine.fold(Outcome::default(), |sum, seed| sum.and(run(seed, rules)))
            })
        })
        .collect();
    parts.into_iter().fold(Outcome::default(), |sum, part| sum.and(part.join().unwrap()))
}

#[test]
fn whatever_breaks_all_nodes_come_to_one_truth() {
    let outcome = run_all(0..seeds(), Rules::ALL);
    println!("{} runs: {outcome:?}", seeds());
    assert!(outcome.broken.is_empty(), "{:#?}", &outcome.broken[..outcome.broken.len().min(5)]);
    assert!(outcome.changes > 1_000 * seeds() / 10 && outcome.deaths > seeds(), "{outcome:?}");
}

#[test]
fn every_rule_is_needed() {
    let all = run_all(0..60, Rules::ALL);
    for rule in [
        Rule::JoinEnds,
        Rule::OnlyLive,
        Rule::OnceInOrder,
        Rule::Aged,
        Rule::ExactRelease,
        Rule::Displaced,
        Rule::DeadIfSilent,
        Rule::OwnHeartbeats,
        Rule::Again,
        Rule::ResetIfSilent,
        Rule::ExactParts,
        Rule::Identity,
        Rule::Above,
    ] {
        let without = run_all(0..60, Rules::without(rule));
        println!("without {rule:?}: {} broken, {} healthy ended", without.broken.len(), without.healthy_ended);
        let worse = !without.broken.is_empty() || without.healthy_ended > all.healthy_ended;
        assert!(worse, "{rule:?} could be left out: {without:?} against {all:?}");
    }
}
