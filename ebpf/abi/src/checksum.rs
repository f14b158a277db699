//! The Internet checksum (RFC 1071), and how to keep one right while parts of what it covers are
//! replaced (RFC 1624).
//!
//! Sums are taken over words in native order: a ones'-complement sum does not depend on the byte
//! order it is computed in (RFC 1071 section 2 (B)), so nothing is swapped on the way.

use crate::addr::Addr;

/// What replacing some bytes does to a ones'-complement sum: sum(new) - sum(old), unfolded.
///
/// [`Self::value`] is what the kernel's `bpf_l4_csum_replace` takes as `to` with `from` and size
/// zero; [`Self::apply`] is the same for a checksum field at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u32);

impl Delta {
    /// Nothing was replaced.
    pub const ZERO: Self = Self(0);

    /// Takes note of `old` bytes that become `new`. Both begin at an even offset of the summed
    /// data; `N` is even.
    #[inline(always)]
    #[must_use]
    pub fn replace<const N: usize>(self, old: &[u8; N], new: &[u8; N]) -> Self {
        Self(add(add(self.0, sum(new)), !sum(old)))
    }

    /// [`Self::replace`] for words in native order.
    #[inline(always)]
    #[must_use]
    pub fn replace_words<const N: usize>(self, old: &[u32; N], new: &[u32; N]) -> Self {
        let mut total = self.0;
        let mut at = 0;
        while at < N {
            total = add(add(total, new[at]), !old[at]);
            at += 1;
        }
        Self(total)
    }

    /// Takes note of an address that becomes another. The v4-mapped prefix is the same on both
    /// sides, so for IPv4 this is what the four octets would give.
    #[inline(always)]
    #[must_use]
    pub fn replace_addr(self, old: &Addr, new: &Addr) -> Self {
        self.replace_words(&old.words(), &new.words())
    }

    /// The difference as a 32-bit ones'-complement number.
    #[inline(always)]
    pub const fn value(self) -> u32 {
        self.0
    }

    /// The checksum field after the replacement (RFC 1624 equation 3).
    #[inline(always)]
    pub fn apply(self, checksum: [u8; 2]) -> [u8; 2] {
        let old = u32::from(!u16::from_ne_bytes(checksum));
        (!fold(add(old, self.0))).to_ne_bytes()
    }
}

/// Ones'-complement addition.
#[inline(always)]
pub const fn add(a: u32, b: u32) -> u32 {
    let (sum, carry) = a.overflowing_add(b);
    // Cannot overflow again: a sum that carried is at most `u32::MAX - 1`.
    sum + carry as u32
}

/// Brings a 32-bit sum down to 16 bits.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "two folds leave 16 bits")]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Unfolded ones'-complement sum of an even number of bytes.
#[inline(always)]
pub fn sum<const N: usize>(bytes: &[u8; N]) -> u32 {
    const { assert!(N.is_multiple_of(2), "a sum is taken over 16-bit words") };
    let mut total = 0;
    let mut at = 0;
    while at + 4 <= N {
        let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        total = add(total, u32::from_ne_bytes(word));
        at += 4;
    }
    if at < N {
        total = add(total, u32::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]])));
    }
    total
}

/// Unfolded ones'-complement sum of words in native order.
#[inline(always)]
pub fn sum_words<const N: usize>(words: &[u32; N]) -> u32 {
    let mut total = 0;
    let mut at = 0;
    while at < N {
        total = add(total, words[at]);
        at += 1;
    }
    total
}

/// The checksum of data whose unfolded partial sums are given.
#[inline(always)]
pub fn finish(first: u32, second: u32) -> [u8; 2] {
    (!fold(add(first, second))).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    extern crate std;

    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    /// RFC 1071 by the letter: big-endian words, a wide accumulator, folded at the end.
    fn reference(bytes: &[u8]) -> u16 {
        let mut total: u64 = 0;
        for pair in bytes.chunks(2) {
            total += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        !u16::try_from(total).unwrap()
    }

    #[test]
    fn example_of_rfc_1071_section_3() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&data)).to_ne_bytes(), [0xdd, 0xf2]);
    }

    #[test]
    fn example_of_rfc_1624_section_4() {
        // HC = 0xDD2F, m = 0x5555, m' = 0x3285: the right answer is 0x0000, not 0xFFFF.
        let delta = Delta::ZERO.replace(&[0x55, 0x55], &[0x32, 0x85]);
        assert_eq!(delta.apply([0xdd, 0x2f]), [0x00, 0x00]);
    }

    proptest! {
        #[test]
        fn incremental_equals_full_recomputation(
            mut data in proptest::collection::vec(any::<u8>(), 64),
            first in any::<[u8; 16]>(), second in any::<[u8; 2]>(),
            at in 0_usize..=22,
        ) {
            data[1] |= 1; // the sum of nothing but zeroes has two representations
            let before = reference(&data).to_be_bytes();
            let (a, b) = (at * 2, 60);
            let old_first: [u8; 16] = data[a..a + 16].try_into().unwrap();
            let old_second: [u8; 2] = data[b..b + 2].try_into().unwrap();
            let delta = Delta::ZERO.replace(&old_first, &first).replace(&old_second, &second);
            data[a..a + 16].copy_from_slice(&first);
            data[b..b + 2].copy_from_slice(&second);
            let after = delta.apply(before);
            let mut summed: Vec<u8> = data.clone();
            summed.extend(after);
            prop_assert_eq!(reference(&summed), 0, "data and its checksum sum to all ones");
            if data.iter().any(|&byte| byte != 0) {
                prop_assert_eq!(after, reference(&data).to_be_bytes());
            }
        }

        #[test]
        fn sum_equals_the_reference(data in any::<[u8; 30]>()) {
            prop_assert_eq!(finish(sum(&data), 0), reference(&data).to_be_bytes());
        }
    }
}
