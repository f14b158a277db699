//! Counts and chance of the fault tests: `cargo xtask test` runs each with a seeded twentieth,
//! `cargo xtask soak` in full.

/// Whether the fault tests run in full.
pub fn in_full() -> bool {
    std::env::var_os("MIZZEN_SOAK").is_some()
}

/// A count in full, or its twentieth.
pub fn share(full: u64) -> u64 {
    if in_full() { full } else { full / 20 }
}

/// Chance that can be had again: `MIZZEN_SOAK_SEED` sets it, and a failure names it.
#[derive(Clone, Debug)]
pub struct Dice {
    /// What it began with.
    pub seed: u64,
    state: u64,
}

impl Dice {
    /// Dice that begin with the seed that the environment names, else always the same one.
    #[expect(clippy::new_without_default, reason = "it reads the environment")]
    pub fn new() -> Self {
        let named = std::env::var("MIZZEN_SOAK_SEED").ok().and_then(|text| text.parse().ok());
        Self::seeded(named.unwrap_or(0x006d_697a_7a65_6e21))
    }

    /// Dice that begin with this.
    pub fn seeded(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    /// The next number (splitmix64).
    pub fn roll(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.roll() % limit as u64).unwrap()
    }

    /// Whether something happens that happens once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Some of them, at least one, in their order.
    pub fn some<T: Copy>(&mut self, of: &[T]) -> Vec<T> {
        let certain = self.below(of.len());
        let chosen = of.iter().enumerate().filter(|(i, _)| *i == certain || self.roll() & 1 == 0);
        chosen.map(|(_, item)| *item).collect()
    }
}
