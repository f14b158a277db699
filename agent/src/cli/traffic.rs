//! `mizzen backends --traffic`: what each backend was sent by this node.

use super::inspect::{Outcome, columns};
use crate::{
    serve::wire::{BackendTraffic, PortTraffic},
    traffic::Traffic,
};

/// A row for each backend, and one for what is left of a port's sum: former backends.
pub(super) fn print(body: &str) -> anyhow::Result<(String, Outcome)> {
    let ports: Vec<PortTraffic> = serde_json::from_str(body)?;
    let heads = [
        "SERVICE",
        "PORT",
        "BACKEND",
        "CONNECTIONS",
        "OPEN",
        "SENT",
        "RECEIVED",
        "RETRANSMITS",
        "PACKETS SENT",
        "PACKETS RECEIVED",
    ];
    Ok((columns(&heads, ports.iter().flat_map(rows).collect()), Outcome::Ok))
}

fn rows(port: &PortTraffic) -> Vec<Vec<String>> {
    let service = format!("{}/{}", port.namespace, port.name);
    let name = if port.port.is_empty() { &port.protocol } else { &port.port };
    let row = |backend: &str, traffic: &Traffic| {
        vec![
            service.clone(),
            name.clone(),
            backend.to_owned(),
            traffic.connections().to_string(),
            traffic.sockets.open.to_string(),
            octets(traffic.sent_bytes()),
            octets(traffic.received_bytes()),
            traffic.sockets.retransmits.to_string(),
            traffic.packets.sent_packets.to_string(),
            traffic.packets.received_packets.to_string(),
        ]
    };
    let mut rows: Vec<_> = port
        .backends
        .iter()
        .map(|BackendTraffic { backend, traffic }| row(backend, traffic))
        .collect();
    let former = port.traffic.without(port.backends.iter().map(|backend| backend.traffic));
    if !former.is_none() {
        rows.push(row("(former)", &former));
    }
    rows
}

/// A number of octets for people.
pub(super) fn octets(number: u64) -> String {
    const UNITS: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut unit = "";
    let (mut whole, mut tenths) = (number, 0);
    for next in UNITS {
        if whole < 1024 {
            break;
        }
        (whole, tenths, unit) = (whole / 1024, whole % 1024 * 10 / 1024, next);
    }
    if unit.is_empty() { whole.to_string() } else { format!("{whole}.{tenths}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::SocketTraffic;

    #[test]
    fn octets_are_rounded_down_to_tenths() {
        for (number, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0Ki"),
            (1535, "1.4Ki"),
            (1536, "1.5Ki"),
            (5 << 20, "5.0Mi"),
            (u64::MAX, "15.9Ei"),
        ] {
            assert_eq!(octets(number), text);
        }
    }

    #[test]
    fn former_backends_have_a_row_where_they_were_sent_something() {
        let traffic = |connections| {
            let sockets = SocketTraffic { connections, ..SocketTraffic::default() };
            Traffic { sockets, ..Traffic::default() }
        };
        let backend = |connections| BackendTraffic {
            backend: "10.0.0.1:80".into(),
            traffic: traffic(connections),
        };
        let mut port = PortTraffic {
            namespace: "a".into(),
            name: "b".into(),
            port: String::new(),
            protocol: "UDP".into(),
            family: "IPv4".into(),
            traffic: traffic(7),
            backends: vec![backend(2), backend(4)],
        };
        let shown = |port: &PortTraffic| -> Vec<(String, String)> {
            rows(port).into_iter().map(|row| (row[2].clone(), row[3].clone())).collect()
        };
        let cell = |name: &str, n: &str| (name.to_owned(), n.to_owned());
        let both = [cell("10.0.0.1:80", "2"), cell("10.0.0.1:80", "4")];
        assert_eq!(shown(&port), [&both[..], &[cell("(former)", "1")]].concat());
        assert_eq!(rows(&port)[0][1], "UDP", "a port without a name");
        port.traffic = traffic(6);
        assert_eq!(shown(&port), both);
    }
}
