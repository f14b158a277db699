//! Contenders that take turns, and what their rounds say. Nothing here knows what is measured.

use anyhow::{Context, Result};

use super::{interrupt, statistics};
use crate::{load::Measured, step::note};

/// Where the median of reference/reference lies on a quiet machine.
const QUIET: std::ops::RangeInclusive<f64> = 0.98..=1.02;
/// How often a figure is measured in search of a quiet time.
const ATTEMPTS: u32 = 3;
/// The contender that others are compared with; the one behind it is the same once more.
pub const REFERENCE: usize = 0;

/// What a measurement is judged by.
pub type Quantity = fn(&Measured) -> f64;

/// A measurement of every contender in every round.
#[derive(Clone, Debug)]
pub struct Rounds {
    rounds: Vec<Vec<Measured>>,
}

/// Median and half-spread of a few samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The median.
    pub value: f64,
    /// Half of the distance between the quartiles.
    pub spread: f64,
}

impl Summary {
    /// Of samples.
    pub fn of(samples: &[f64]) -> Self {
        Self { value: statistics::median(samples), spread: statistics::half_spread(samples) }
    }
}

impl Rounds {
    /// A contender's quantity over the mean of the reference's two turns, round by round.
    pub fn to_reference(&self, contender: usize, quantity: Quantity) -> Summary {
        self.over(|round| {
            let reference = &round[REFERENCE..=REFERENCE + 1];
            quantity(&round[contender]) * 2.0 / reference.iter().map(quantity).sum::<f64>()
        })
    }

    /// A contender's quantity over another's, round by round.
    pub fn ratio(&self, contender: usize, other: usize, quantity: Quantity) -> Summary {
        self.over(|round| quantity(&round[contender]) / quantity(&round[other]))
    }

    /// The reference over itself: what the machine's noise alone does.
    pub fn noise(&self, quantity: Quantity) -> Summary {
        self.ratio(REFERENCE + 1, REFERENCE, quantity)
    }

    /// A contender's quantity itself.
    pub fn plain(&self, contender: usize, quantity: Quantity) -> Summary {
        self.over(|round| quantity(&round[contender]))
    }

    /// Anything of a round.
    pub fn over(&self, of_round: impl Fn(&[Measured]) -> f64) -> Summary {
        let samples: Vec<f64> = self.rounds.iter().map(|round| of_round(round)).collect();
        Summary::of(&samples)
    }
}

/// How often contenders take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How many samples there are of each.
    pub rounds: u32,
    /// In how many short turns a sample is taken, whose mean it is: what disturbs the machine for a
    /// while then disturbs all of them alike.
    pub turns: u32,
}

impl From<u32> for Pace {
    /// Each sample in one turn.
    fn from(rounds: u32) -> Self {
        Self { rounds, turns: 1 }
    }
}

/// Measures until the reference says that the machine was quiet, a few times at most; the quietest
/// attempt counts.
pub fn quiet<C>(
    name: &str,
    contenders: &[C],
    pace: impl Into<Pace>,
    judged_by: Quantity,
    mut measure: impl FnMut(&C) -> Result<Measured>,
) -> Result<Rounds> {
    let (pace, mut best) = (pace.into(), None::<(f64, Rounds)>);
    for attempt in 1..=ATTEMPTS {
        let taken = take(contenders, pace, &mut measure).with_context(|| name.to_owned())?;
        let noise = taken.noise(judged_by).value;
        let off = (noise - 1.0).abs();
        if best.as_ref().is_none_or(|(least, _)| off < *least) {
            best = Some((off, taken));
        }
        if QUIET.contains(&noise) {
            break;
        }
        let again = if attempt < ATTEMPTS { "once more" } else { "the quietest attempt counts" };
        note(&format!("{name}: the machine is noisy (bare/bare {noise:.3}), {again}"));
    }
    best.map(|(_, rounds)| rounds).context("nothing was measured")
}

fn take<C>(
    contenders: &[C],
    pace: Pace,
    measure: &mut impl FnMut(&C) -> Result<Measured>,
) -> Result<Rounds> {
    let turns = pace.turns.max(1) as usize;
    let mut all = Vec::new();
    for round in 0..pace.rounds as usize {
        let mut got = vec![Vec::with_capacity(turns); contenders.len()];
        for lap in 0..turns {
            // Who begins changes: what the first of a round warms up favours nobody.
            for turn in 0..contenders.len() {
                interrupt::check()?;
                let at = (turn + round * turns + lap) % contenders.len();
                got[at].push(measure(&contenders[at])?);
            }
        }
        all.push(got.iter().map(|turns| Measured::mean(turns)).collect());
    }
    Ok(Rounds { rounds: all })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(rate: f64) -> Measured {
        Measured { rate, ..Measured::default() }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The machine is twice as fast in the second round: no ratio sees it.
        let rounds = [[10.0, 10.0, 9.0], [20.0, 20.0, 18.0]].map(|r| r.map(measured).to_vec());
        let rounds = Rounds { rounds: rounds.to_vec() };
        assert_eq!(rounds.to_reference(2, |m| m.rate), Summary { value: 0.9, spread: 0.0 });
        assert_eq!(rounds.noise(|m| m.rate), Summary { value: 1.0, spread: 0.0 });
        assert!(rounds.ratio(0, 2, |m| m.rate).spread.abs() < 1e-9);
    }

    #[test]
    fn a_sample_is_the_mean_of_its_turns() {
        let mut order = Vec::new();
        let pace = Pace { rounds: 1, turns: 2 };
        let taken = take(&[0, 1, 2], pace, &mut |contender| {
            order.push(*contender);
            Ok(measured(f64::from(u32::try_from(order.len())?)))
        });
        assert_eq!(order, [0, 1, 2, 1, 2, 0]);
        let rates = [0, 1, 2].map(|at| taken.as_ref().expect("rounds").plain(at, |m| m.rate).value);
        let off = rates.iter().zip([3.5, 3.0, 4.0]).map(|(rate, mean)| (rate - mean).abs());
        assert!(off.fold(0.0, f64::max) < 1e-9, "{rates:?}");
    }

    #[test]
    fn every_contender_begins_once_and_noise_is_measured_again() {
        let mut order = Vec::new();
        let mut calls = 0;
        let contenders = [0, 1, 2];
        let result = quiet(
            "x",
            &contenders,
            3,
            |m| m.rate,
            |contender| {
                order.push(*contender);
                calls += 1;
                // The first attempt is noisy.
                let noisy = calls <= 9 && *contender == 1;
                Ok(measured(if noisy { 5.0 } else { 10.0 }))
            },
        );
        assert_eq!(order[..9], [0, 1, 2, 1, 2, 0, 2, 0, 1]);
        assert_eq!(order.len(), 18);
        let noise = result.expect("rounds").noise(|m| m.rate).value;
        assert!((noise - 1.0).abs() < 1e-9);
    }
}
