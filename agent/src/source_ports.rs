//! Whether the source ports of source NAT are its own: the programs look whether a socket of the
//! node has a port before they take it, but the kernel doesn't know theirs when it gives a port to
//! a socket (reference U4). So the ranges must not meet.

use std::{fs, io};

use crate::status::State;

/// The part on the board.
pub const PART: &str = "source-ports";
/// From which Kubernetes takes node ports, where its API server isn't told otherwise.
const NODE_PORTS: Ports = (30_000, 32_767);
/// Where the kernel says from which ports it gives, IPv6 included.
const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Where it says which of them it leaves out.
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// First and last port.
type Ports = (u16, u16);

/// How the range of source NAT is in this network namespace.
pub fn check(source_nat: Ports) -> State {
    let read = |path| fs::read_to_string(path).map_err(|error| (path, error));
    let settings = read(EPHEMERAL).and_then(|range| Ok((range, read(RESERVED)?)));
    match settings {
        Ok((range, reserved)) => judge(source_nat, &range, &reserved),
        Err((path, error)) => unreadable(path, &error),
    }
}

fn unreadable(path: &str, error: &io::Error) -> State {
    State::Degraded(format!("{path} can't be read, so ports may be given twice: {error}"))
}

/// The same from what the kernel's files hold.
fn judge(source_nat: Ports, range: &str, reserved: &str) -> State {
    let (first, last) = source_nat;
    let mut found = Vec::new();
    if let Some(ephemeral) = range_of(range) {
        let reserved: Vec<Ports> = reserved.trim().split(',').filter_map(range_of).collect();
        if let Some((from, to)) =
            common(source_nat, ephemeral).and_then(|both| not_in(both, &reserved))
        {
            found.push(format!(
                "the kernel gives ports {from} to {to} to sockets too: add {first}-{last} to \
                 net.ipv4.ip_local_reserved_ports"
            ));
        }
    }
    if let Some((from, to)) = common(source_nat, NODE_PORTS) {
        found.push(format!(
            "ports {from} to {to} are in the usual range of node ports: set snatPortMin and \
             snatPortMax to others"
        ));
    }
    if found.is_empty() {
        return State::Ready;
    }
    State::Degraded(format!("source NAT uses ports {first} to {last}: {}", found.join("; ")))
}

/// A range as the kernel writes it: `32768 60999`, `10000-29999`, `8080`.
fn range_of(text: &str) -> Option<Ports> {
    let mut ends =
        text.split(|c: char| c == '-' || c.is_whitespace()).filter(|end| !end.is_empty());
    let first = ends.next()?.parse().ok()?;
    let last = ends.next().map_or(Some(first), |end| end.parse().ok())?;
    Some((first, last))
}

fn common(a: Ports, b: Ports) -> Option<Ports> {
    let both = (a.0.max(b.0), a.1.min(b.1));
    (both.0 <= both.1).then_some(both)
}

/// From the first to the last port of a range that is in none of the others.
fn not_in(range: Ports, others: &[Ports]) -> Option<Ports> {
    let free = |port: &u16| !others.iter().any(|other| (other.0..=other.1).contains(port));
    let mut ports = (range.0..=range.1).filter(free);
    let first = ports.next()?;
    Some((first, ports.next_back().unwrap_or(first)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: &str = "32768\t60999\n";

    fn text(state: State) -> String {
        match state {
            State::Degraded(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn u04_the_default_range_meets_nothing() {
        use mizzen_ebpf_abi::limits::{SNAT_PORT_MAX, SNAT_PORT_MIN};
        assert_eq!(judge((SNAT_PORT_MIN, SNAT_PORT_MAX), DEFAULT, "\n"), State::Ready);
    }

    #[test]
    fn u04_ports_that_the_kernel_gives_to_sockets_are_named() {
        let said = text(judge((10_000, 29_999), "15000\t61000\n", "\n"));
        assert!(said.contains("15000 to 29999"), "{said}");
        assert!(said.contains("add 10000-29999 to net.ipv4.ip_local_reserved_ports"), "{said}");
        let said = text(judge((10_000, 29_999), "15000 61000", "8080,15000-20000,29000-29999\n"));
        assert!(said.contains("20001 to 28999"), "{said}");
        let said = text(judge((10_000, 29_999), "15000 61000", "10000-19999,20001-29999"));
        assert!(said.contains("20000 to 20000"), "{said}");
    }

    #[test]
    fn u04_reserved_ports_are_no_collision() {
        for reserved in ["10000-29999\n", "9000-20000,20001-30000", "15000,15001-29999"] {
            assert_eq!(
                judge((10_000, 29_999), "15000 61000", reserved),
                State::Ready,
                "{reserved}"
            );
        }
    }

    #[test]
    fn u04_node_ports_are_named() {
        let said = text(judge((20_000, 31_000), DEFAULT, ""));
        assert!(said.contains("30000 to 31000") && said.contains("snatPortMax"), "{said}");
        let both = text(judge((20_000, 40_000), DEFAULT, ""));
        assert!(both.contains("32768 to 40000") && both.contains("30000 to 32767"), "{both}");
    }
}
