//! Notices of the kernel about settings of interfaces (`RTM_NEWNETCONF`), as far as they say that
//! somebody made one otherwise than the pod network has it. Pure.

/// Octets of a netlink header, and of this message's own behind it.
const HEADERS: usize = 16 + 4;
const RTM_NEWNETCONF: u16 = 80;
const RTM_DELNETCONF: u16 = 81;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_RP_FILTER: u16 = 3;

/// Whether a datagram tells of such a change; `None` where it is about something else.
///
/// A notice about a new interface has all its settings, one about a change has a single one.
pub(super) fn told(datagram: &[u8]) -> Option<bool> {
    let kind = u16::from_ne_bytes([*datagram.get(4)?, *datagram.get(5)?]);
    match kind {
        RTM_NEWNETCONF => {
            let mut settings = attributes(datagram.get(HEADERS..).unwrap_or_default())
                .filter(|(name, _)| *name != NETCONFA_IFINDEX);
            let first = settings.next();
            let is_change = settings.next().is_none();
            Some(is_change && first.is_some_and(is_unwanted))
        }
        RTM_DELNETCONF => Some(false),
        _ => None,
    }
}

/// Whether the pod network needs it otherwise.
fn is_unwanted((name, value): (u16, i32)) -> bool {
    match name {
        NETCONFA_FORWARDING => value == 0,
        NETCONFA_RP_FILTER => value != 0,
        _ => false,
    }
}

/// The attributes that are numbers.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, i32)> {
    std::iter::from_fn(move || {
        let [l0, l1, n0, n1, v0, v1, v2, v3, ..] = *bytes else { return None };
        let length = usize::from(u16::from_ne_bytes([l0, l1])).max(4).next_multiple_of(4);
        bytes = bytes.get(length..).unwrap_or_default();
        Some((u16::from_ne_bytes([n0, n1]), i32::from_ne_bytes([v0, v1, v2, v3])))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(kind: u16, settings: &[(u16, i32)]) -> Vec<u8> {
        let mut bytes = vec![0; HEADERS];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        for (name, value) in settings {
            bytes.extend(8_u16.to_ne_bytes());
            bytes.extend(name.to_ne_bytes());
            bytes.extend(value.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn a_setting_that_somebody_turned_is_told() {
        let changed =
            |name, value| told(&datagram(RTM_NEWNETCONF, &[(NETCONFA_IFINDEX, 7), (name, value)]));
        assert_eq!(changed(NETCONFA_FORWARDING, 0), Some(true));
        assert_eq!(changed(NETCONFA_FORWARDING, 1), Some(false));
        assert_eq!(changed(NETCONFA_RP_FILTER, 1), Some(true));
        assert_eq!(changed(NETCONFA_RP_FILTER, 0), Some(false));
        assert_eq!(changed(4, 0), Some(false), "forwarding of multicast is nothing to us");
    }

    #[test]
    fn a_new_interface_is_no_change() {
        let all = [(NETCONFA_IFINDEX, 7), (NETCONFA_FORWARDING, 0), (NETCONFA_RP_FILTER, 1)];
        assert_eq!(told(&datagram(RTM_NEWNETCONF, &all)), Some(false));
        assert_eq!(told(&datagram(RTM_DELNETCONF, &[])), Some(false));
        assert_eq!(told(&datagram(16, &all)), None);
        assert_eq!(told(&[0; 3]), None);
    }
}
