//! Memory that was needed for a while goes back to the system.
//!
//! Lists of a large cluster pass through the agent as text, and leave holes among what is kept of
//! them: at 10,000 services with ten endpoints each, 17 of 85 MB. The C library keeps such holes
//! for later; an agent that has taken its lists in won't need them before the next one.

use std::collections::BTreeMap;

/// Packs a map tightly that was filled in the order of its keys: so filled, its leaves are little
/// more than half full, and changes that come one by one leave most of them as they are.
pub(crate) fn pack<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    *map = std::mem::take(map).into_iter().collect();
}

/// The order in which what is sorted fills a map of nodes most tightly, one of `imbl` that is: every
/// second one leaves all nodes half full but for the last, and the others fill them. In their own
/// order all would stay half full.
pub(crate) fn packing<T>(sorted: Vec<T>) -> impl Iterator<Item = T> {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for (place, item) in sorted.into_iter().enumerate() {
        if place % 2 == 0 { first.push(item) } else { second.push(item) }
    }
    first.into_iter().chain(second)
}

/// Has large pieces of memory, such as a page of a list, never stand between what is kept of them:
/// they have pages of their own, and those go back as soon as they are let go. The C library begins
/// so, and no longer does once it has seen some of that size.
pub(crate) fn keep_large_pieces_apart() {
    /// In octets; where the C library begins.
    #[cfg(target_env = "gnu")]
    const LARGE: libc::c_int = 128 << 10;
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` takes two numbers and sets one of the allocator's own parameters.
    let _set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
}

/// Gives unused pages of the heap back. It takes some milliseconds for a large heap.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes a number of octets to keep, locks each arena while it looks
    // through it, and touches nothing that is allocated.
    let _any = unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
#[cfg(target_env = "gnu")]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    /// Octets of a page.
    const PAGE: usize = 4096;

    /// Which of these addresses have memory behind them. The memory of the process as a whole says
    /// nothing here: other tests share it.
    fn resident(addresses: &[usize]) -> usize {
        let pages = std::fs::File::open("/proc/self/pagemap").unwrap();
        let is_present = |address: &&usize| {
            let mut entry = [0; 8];
            let at = u64::try_from(**address / PAGE * entry.len()).unwrap();
            // Bit 63: the page is there (Documentation/admin-guide/mm/pagemap.rst).
            let read = pages.read_at(&mut entry, at).unwrap();
            read == entry.len() && u64::from_ne_bytes(entry) >> 63 == 1
        };
        addresses.iter().filter(is_present).count()
    }

    /// The middle of a piece.
    fn middle(piece: &[u8]) -> usize {
        piece.as_ptr().addr() + piece.len() / 2
    }

    /// How many nodes hold the entries of a map: those of one node stand one behind the other.
    fn nodes(map: &imbl::OrdMap<u64, u64>) -> usize {
        let places: Vec<usize> = map.keys().map(|key| std::ptr::from_ref(key).addr()).collect();
        let apart = |pair: &[usize]| pair[1].wrapping_sub(pair[0]);
        let beside = places.windows(2).map(apart).min().unwrap_or(0);
        1 + places.windows(2).filter(|pair| apart(pair) != beside).count()
    }

    #[test]
    fn a_map_that_is_filled_packing_has_half_the_nodes() {
        let sorted: Vec<(u64, u64)> = (0..10_000).map(|number| (number, number)).collect();
        let in_order: imbl::OrdMap<u64, u64> = sorted.iter().copied().collect();
        let packed: imbl::OrdMap<u64, u64> = packing(sorted).collect();
        assert_eq!(in_order, packed);
        let (many, few) = (nodes(&in_order), nodes(&packed));
        assert!(few * 10 <= many * 6 && few > 1, "{few} and {many}");
    }

    #[test]
    fn large_pieces_leave_no_room_behind() {
        keep_large_pieces_apart();
        // One of them raises the size from which they have pages of their own, unless that is set.
        drop(vec![1_u8; 24 << 20]);
        let pieces: Vec<_> = (0..8).map(|_| (vec![1_u8; 16 << 20], Box::new(1_u64))).collect();
        let places: Vec<usize> = pieces.iter().map(|(large, _)| middle(large)).collect();
        assert_eq!(resident(&places), 8);
        let kept: Vec<_> = pieces.into_iter().map(|(_large, small)| small).collect();
        // Another test may have got one of the places meanwhile.
        let left = resident(&places);
        assert!(left <= 2, "{left} of 8 pieces are there still, for {}", kept.len());
    }

    #[test]
    fn holes_between_what_is_kept_are_given_back() {
        let mut pieces: Vec<_> = (0..100_000).map(|_| Some(vec![1_u8; 1_000])).collect();
        let places: Vec<usize> = pieces.iter().flatten().map(|piece| middle(piece)).collect();
        assert_eq!(resident(&places), places.len());
        // Each hundredth stays, so that the end of the heap does not fall free.
        for (n, piece) in pieces.iter_mut().enumerate() {
            if n % 100 != 0 {
                *piece = None;
            }
        }
        give_back();
        let left = resident(&places);
        assert!(left * 2 < places.len(), "{left} of {} places have memory", places.len());
        assert_eq!(pieces.iter().flatten().count(), 1_000);
    }
}
