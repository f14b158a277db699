//! How much the tests do, and chance that can be had again.

/// A count in full for `cargo xtask soak`, else its twentieth.
pub(crate) fn share(full: u64) -> u64 {
    if std::env::var_os("MIZZEN_SOAK").is_some() { full } else { full / 20 }
}

/// Chance that begins with `MIZZEN_SOAK_SEED`, else always the same.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The dice of one of several who play.
    pub(crate) fn of(player: u64) -> Self {
        let named = std::env::var("MIZZEN_SOAK_SEED").ok().and_then(|text| text.parse().ok());
        Self(named.unwrap_or(0x006d_697a_7a65_6e21_u64).wrapping_add(player << 32))
    }

    /// A number below `limit` (splitmix64).
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}
