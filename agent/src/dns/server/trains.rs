//! Answers that leave together: those to one client, by one walk through the network stack
//! (`UDP_SEGMENT`), which costs more than all else that an answer needs. A client that asks for
//! both families of a name, as the C libraries do, mostly gets both so.
//!
//! What leaves together has one length, and one more that is shorter may be behind it.

use std::{cmp::Reverse, net::SocketAddr, ops::Range};

/// Segments of a train at most: as many as the oldest kernels take (UDP_MAX_SEGMENTS).
const LONGEST: usize = 64;

/// Orders answers by whose they are, longer ones first, and gives the trains that they make: ranges
/// of that order. An answer alone is a train too. `length_of` is the length of one, in octets.
pub(super) fn couple(
    order: &mut [usize],
    whose: impl Fn(usize) -> SocketAddr,
    length_of: impl Fn(usize) -> usize,
) -> Vec<Range<usize>> {
    order.sort_by_key(|place| (whose(*place), Reverse(length_of(*place))));
    let mut trains: Vec<Range<usize>> = Vec::with_capacity(order.len());
    let mut is_full = true;
    for at in 0..order.len() {
        let Some(last) = trains.last_mut().filter(|train| {
            !is_full && train.len() < LONGEST && whose(order[train.start]) == whose(order[at])
        }) else {
            trains.push(at..at + 1);
            is_full = false;
            continue;
        };
        last.end = at + 1;
        is_full = length_of(order[at]) < length_of(order[last.start]);
    }
    trains
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The trains of these answers: whose, and how long.
    fn trains(answers: &[(u8, usize)]) -> Vec<Vec<(u8, usize)>> {
        let mut order: Vec<_> = (0..answers.len()).collect();
        let whose = |place: usize| SocketAddr::from(([127, 0, 0, answers[place].0], 53));
        let trains = couple(&mut order, whose, |place| answers[place].1);
        let of = |train: Range<usize>| order[train].iter().map(|place| answers[*place]).collect();
        trains.into_iter().map(of).collect()
    }

    #[test]
    fn both_families_of_a_name_leave_together() {
        assert_eq!(trains(&[(1, 60), (1, 113)]), [[(1, 113), (1, 60)]]);
        assert_eq!(trains(&[(1, 60), (2, 60), (1, 60)]), [&[(1, 60), (1, 60)][..], &[(2, 60)]]);
        let many = [(1, 9), (1, 9), (1, 7), (1, 7), (1, 5)];
        assert_eq!(trains(&many), [&[(1, 9), (1, 9), (1, 7)][..], &[(1, 7), (1, 5)]]);
        assert_eq!(trains(&[]), [[]; 0]);
        let lengths: Vec<_> = trains(&[(1, 9); 70]).iter().map(Vec::len).collect();
        assert_eq!(lengths, [LONGEST, 6]);
    }

    proptest! {
        /// Every answer is in one train, and each train is one that the kernel takes.
        #[test]
        fn any_answers(answers in prop::collection::vec((1..4_u8, 1..5_usize), 0..80)) {
            let trains = trains(&answers);
            for train in &trains {
                prop_assert!((1..=LONGEST).contains(&train.len()));
                let (whose, length) = train[0];
                let [before @ .., last] = &train[..] else { unreachable!() };
                prop_assert!(before.iter().all(|answer| *answer == (whose, length)));
                prop_assert!(last.0 == whose && last.1 <= length);
            }
            let mut all = trains.concat();
            all.sort_unstable();
            let mut answers = answers;
            answers.sort_unstable();
            prop_assert_eq!(all, answers);
        }
    }
}
