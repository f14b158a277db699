//! What reads octets of others, called with what `fuzz` keeps and with what chance makes of it:
//! seeded, so that a failure comes again. `cargo xtask fuzz` searches for more.

use std::panic;

use mizzen_fuzz::{TARGETS, Target};
use mizzen_tests::soak::{Dice, in_full};

/// Octets that are called with at most.
const LENGTH_MAX: usize = 1 << 14;
/// Changes of one at most.
const CHANGES_MAX: usize = 6;
/// Octets that numbers and texts end and begin with.
const ODD: [u8; 12] = [0, 1, 0x3f, 0x40, 0x7f, 0x80, 0xc0, 0xff, b'\n', b'"', b'{', b' '];

/// Calls a target as often as it says.
fn short_run(name: &str) {
    let target = Target::named(name).expect("a target");
    let corpus = target.corpus().expect("what is kept of it");
    assert!(!corpus.is_empty());
    for octets in &corpus {
        call(target, octets, None);
    }
    let mut dice = Dice::new();
    let calls = if in_full() { 20 * target.calls } else { target.calls };
    for _ in 0..calls {
        let seed = dice.seed;
        let octets = changed(&corpus, &mut dice);
        call(target, &octets, Some(seed));
    }
}

/// Calls it, and says with what where that fails.
fn call(target: &Target, octets: &[u8], seed: Option<u64>) {
    let called = panic::catch_unwind(|| (target.run)(octets));
    if let Err(reason) = called {
        eprintln!("{} (seed {seed:?}) fails on {}", target.name, octets.escape_ascii());
        panic::resume_unwind(reason);
    }
}

/// One of them, with a few changes.
fn changed(corpus: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut octets = corpus[dice.below(corpus.len())].clone();
    for _ in 0..=dice.below(CHANGES_MAX) {
        let from = dice.below(octets.len() + 1);
        let to = (from + dice.below(17)).min(octets.len());
        match dice.below(6) {
            0 if from < octets.len() => octets[from] ^= 1 << dice.below(8),
            1 if from < octets.len() => octets[from] = ODD[dice.below(ODD.len())],
            2 => drop(octets.drain(from..to)),
            3 => octets.insert(from, ODD[dice.below(ODD.len())]),
            // A part of itself once more, or of another one.
            4 => {
                let part = octets[from..to].to_vec();
                let at = dice.below(octets.len() + 1);
                octets.splice(at..at, part);
            }
            _ => {
                let other = &corpus[dice.below(corpus.len())];
                octets.truncate(from);
                octets.extend(&other[from.min(other.len())..]);
            }
        }
        octets.truncate(LENGTH_MAX);
    }
    octets
}

macro_rules! short_runs {
    ($($test:ident $name:literal),+ $(,)?) => {
        $(#[test]
        fn $test() {
            short_run($name);
        })+

        #[test]
        fn every_target_has_a_short_run() {
            let tested = [$($name),+];
            assert_eq!(TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), tested);
        }
    };
}

short_runs! {
    dns_50_any_question "dns-question",
    dns_50_any_answer_of_an_upstream_is_kept_as_it_came "dns-answer",
    any_history_of_the_resolvers_cache "dns-cache",
    any_corefile "corefile",
    any_configuration_of_the_agent "agent-config",
    any_input_of_the_plugin "cni-stdin",
    any_packet "packet",
    any_log_of_the_store "store-log",
}
