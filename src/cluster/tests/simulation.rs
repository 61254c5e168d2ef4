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

/// Each rule, and the first seeds that are known to show what it is for.
const NEEDED: [(Rule, u64); 13] = [
    (Rule::JoinEnds, 132),
    (Rule::OnlyLive, 0),
    (Rule::OnceInOrder, 0),
    (Rule::Aged, 24),
    (Rule::ExactRelease, 0),
    (Rule::Displaced, 0),
    (Rule::DeadIfSilent, 60),
    (Rule::OwnHeartbeats, 0),
    (Rule::Again, 0),
    (Rule::ResetIfSilent, 0),
    (Rule::ExactParts, 324),
    (Rule::Identity, 0),
    (Rule::Above, 0),
];

#[test]
fn every_rule_is_needed() {
    const CHUNK: u64 = 12;
    const SEEDS: u64 = 600;
    for (rule, known) in NEEDED {
        let shown = (known..known + SEEDS).step_by(CHUNK as usize).find_map(|from| {
            let without = run_all(from..from + CHUNK, Rules::without(rule));
            let all = run_all(from..from + CHUNK, Rules::ALL);
            let broken = without.broken.len() > all.broken.len();
            // Without some rules it comes to one truth all the same, but by way of others.
            let worse = without.healthy_ended > all.healthy_ended || without.ghosts > all.ghosts;
            (broken || worse).then_some((from, without))
        });
        let Some((from, without)) = shown else { panic!("{rule:?} could be left out") };
        let Outcome { broken, healthy_ended, ghosts, .. } = without;
        println!(
            "without {rule:?}, from seed {from}: {} broken, {healthy_ended} healthy nodes ended, {ghosts} ghosts: {:?}",
            broken.len(),
            broken.first(),
        );
    }
}
