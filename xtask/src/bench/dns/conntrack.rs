//! `conntrack-of-dns`: with connection tracking switched on in the server's namespace, what it then
//! knows of questions and answers. The reference, which nothing keeps away from it, shows that the
//! look finds them.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::{
    load::{self, Pace},
    pair::{ADDRESS, At, CLIENT, UPSTREAM_PORT},
    questions,
    seat::{MIZZEN, Seat},
};
use crate::bench::Figure;

/// The name of the figure.
pub const NAME: &str = "conntrack-of-dns";

/// A rule that needs the state of connections switches tracking on.
const RULE: &str = "table inet bench-track {
  chain prerouting { type filter hook prerouting priority 0; ct state new counter; }
  chain output { type filter hook output priority 0; ct state new counter; }
}
";

/// Every name once at each seat, and by TCP some; what is tracked of it.
pub fn measure(seats: &[Seat]) -> Result<Vec<Figure>> {
    let data = questions::data(questions::services().map(|(name, _)| name));
    let mut figures = Vec::new();
    for seat in seats {
        let path = seat.pair.folder()?.join("conntrack-on");
        fs::write(&path, RULE).with_context(|| format!("can't write {}", path.display()))?;
        let path = path.display().to_string();
        seat.pair.capture(At::Server, &["nft", "--file", &path])?;
        // What is asked elsewhere shows that it is on.
        let (upstream, port) = (format!("@{CLIENT}"), UPSTREAM_PORT.to_string());
        let foreign = ["dig", &upstream, "-p", &port, "+short", &questions::foreign(0)];
        ensure!(!seat.pair.capture(At::Server, &foreign)?.is_empty(), "the upstream is silent");
        load::run(seat, &data, Pace::Once, 0.0)?;
        let server = format!("@{ADDRESS}");
        let by_tcp = ["dig", &server, "+tcp", "+short", &questions::name(0)];
        ensure!(!seat.pair.capture(At::Client, &by_tcp)?.is_empty(), "no answer by TCP");
        let entries = seat.pair.capture(At::Server, &["conntrack", "--dump"])?;
        seat.pair.capture(At::Server, &["nft", "delete", "table", "inet", "bench-track"])?;
        let total = entries.lines().count();
        ensure!(total > 0, "connections are not tracked at all: it is not switched on");
        let address = ADDRESS.to_string();
        let found = entries.lines().filter(|entry| names(entry, &address)).count();
        let contender = format!("{}, of {total} entries", seat.label);
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let figure = Figure::once(NAME, found as f64, "entries", contender);
        if seat.label == MIZZEN {
            figures.push(figure.at_most(0.0, 0.0));
        } else {
            ensure!(found > 0, "nothing keeps {} from being tracked, and it is not", seat.label);
            figures.push(figure);
        }
    }
    Ok(figures)
}

/// Whether an entry is of packets from or to that address.
fn names(entry: &str, address: &str) -> bool {
    let words = entry.split_whitespace().filter_map(|word| word.split_once('='));
    let mut ends = words.filter(|(name, _)| matches!(*name, "src" | "dst"));
    ends.any(|(_, value)| value == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_the_resolver_are_told_from_others() {
        let entry = "udp 17 29 src=10.244.1.2 dst=10.96.0.10 sport=4000 dport=53 src=10.96.0.10 \
                     dst=10.244.1.2 sport=53 dport=4000 mark=0 use=1";
        assert!(names(entry, "10.96.0.10"));
        assert!(!names(&entry.replace("10.96.0.10", "10.96.0.1"), "10.96.0.10"));
    }
}
