//! `conntrack-of-services`: with conntrack switched on in the node's namespace, which of its
//! entries know a service.

use std::{fs, net::Ipv4Addr};

use anyhow::{Context, Result};

use super::{Figure, catalogue, contender::Seat, sockets, triple::At};

/// The name of the figure.
pub const NAME: &str = "conntrack-of-services";
/// How many services there are.
pub const SIZE: u32 = sockets::SIZE;

/// A rule that needs the state of connections switches conntrack on.
const RULE: &str = "table inet bench-track {
  chain prerouting { type filter hook prerouting priority 0; ct state new counter; }
  chain output { type filter hook output priority 0; ct state new counter; }
}
";

/// Connections and datagrams by a service at each seat with services, and what conntrack then
/// knows. Mizzen must leave nothing; that rule sets do shows that the look finds it.
pub fn measure(seats: &[Seat]) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for seat in seats.iter().filter(|seat| seat.size > 0) {
        let path = seat.triple.layout.dir.join("conntrack-on");
        fs::write(&path, RULE).with_context(|| format!("can't write {}", path.display()))?;
        let path = path.display().to_string();
        seat.triple.capture(At::Node, &["nft", "--file", &path])?;
        seat.triple.capture(At::Node, &["conntrack", "--flush"])?;
        for mode in ["connect", "rr", "udp-connected", "udp-unconnected"] {
            sockets::load(&seat.by_first_service(catalogue::ECHO_PORT), mode, 50)?;
        }
        let entries = seat.triple.capture(At::Node, &["conntrack", "--dump"])?;
        seat.triple.capture(At::Node, &["nft", "delete", "table", "inet", "bench-track"])?;
        let total = entries.lines().count();
        anyhow::ensure!(total > 0, "conntrack knows no connection at all: it is not switched on");
        let found = entries.lines().filter(|entry| knows_a_service(entry)).count();
        let contender = format!("{}, of {total} entries", seat.label);
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let figure = Figure::once(NAME, found as f64, "entries", contender);
        figures.push(if seat.label == "mizzen" { figure.at_most(0.0, 0.0) } else { figure });
    }
    Ok(figures)
}

/// Whether an entry names an address of the services or carries a translation: its answers are not
/// the exact reverse of what was asked.
fn knows_a_service(entry: &str) -> bool {
    let values = |name: &str| -> Vec<&str> {
        entry.split_whitespace().filter_map(|word| word.strip_prefix(name)).collect()
    };
    let (sources, destinations) = (values("src="), values("dst="));
    let (from, to) = (values("sport="), values("dport="));
    let of_a_service =
        |ip: &&str| ip.parse::<Ipv4Addr>().is_ok_and(|ip| ip.octets()[..2] == [10, 96]);
    let reversed = |a: &[&str], b: &[&str]| a.len() == 2 && b.len() == 2 && a[0] == b[1];
    sources.iter().chain(&destinations).any(of_a_service)
        || !reversed(&sources, &destinations)
        || !reversed(&destinations, &sources)
        || !reversed(&from, &to)
        || !reversed(&to, &from)
}

#[cfg(test)]
mod tests {
    use super::knows_a_service;

    #[test]
    fn only_entries_of_services_and_translations_are_found() {
        let plain = "tcp 6 9 CLOSE src=10.244.1.2 dst=10.244.2.2 sport=4000 dport=7777 \
                     src=10.244.2.2 dst=10.244.1.2 sport=7777 dport=4000 [ASSURED] mark=0 use=1";
        assert!(!knows_a_service(plain));
        assert!(knows_a_service(&plain.replacen("dst=10.244.2.2", "dst=10.96.4.0", 1)));
        let masqueraded = plain.replace("dst=10.244.1.2", "dst=10.244.2.1");
        assert!(knows_a_service(&masqueraded));
        assert!(knows_a_service(&plain.replacen("dport=7777", "dport=80", 1)));
    }
}
