//! What services and their backends were sent, in the text format of Prometheus. Apart from the
//! agent's own metrics, so that who wants a series for each service port says so by the path that
//! is scraped (docs/operations.md). Ports without any traffic on this node have no series.

use std::fmt::Write as _;

use super::escaped;
use crate::traffic::{PacketTraffic, SocketTraffic, Traffic, accounts::PortTraffic};

/// The metrics of service ports.
pub fn services(ports: &[PortTraffic]) -> String {
    let of_port = |port: &PortTraffic| (labels(port), port.total);
    text("service", &ports.iter().map(of_port).collect::<Vec<_>>())
}

/// The metrics of each port's present backends.
pub fn backends(ports: &[PortTraffic]) -> String {
    let of_port = |port: &PortTraffic| {
        let labels = labels(port);
        let backends = port.backends.iter();
        backends
            .map(|backend| (format!("{labels},backend=\"{}\"", backend.at), backend.traffic))
            .collect::<Vec<_>>()
    };
    text("backend", &ports.iter().flat_map(of_port).collect::<Vec<_>>())
}

fn labels(port: &PortTraffic) -> String {
    let key = &port.key;
    let family = if key.ipv6 { "IPv6" } else { "IPv4" };
    format!(
        "namespace=\"{}\",service=\"{}\",port=\"{}\",protocol=\"{}\",ip_family=\"{family}\"",
        escaped(&key.service.namespace),
        escaped(&key.service.name),
        escaped(&key.port),
        key.protocol
    )
}

/// One metric: its name behind the subject's, kind, help; its series by further labels.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    series: &'static [Series],
}

/// Further labels, and the value.
type Series = (&'static str, fn(&Traffic) -> u64);

const METRICS: [Metric; 6] = [
    Metric {
        name: "connections_total",
        kind: "counter",
        help: "Connections of this node's sockets, and flows of its packet path",
        series: &[
            ("path=\"socket\"", |of| of.sockets.connections),
            ("path=\"packet\"", |of| of.packets.flows),
        ],
    },
    Metric {
        name: "open_connections",
        kind: "gauge",
        help: "TCP connections of this node's sockets that are there now",
        series: &[("path=\"socket\"", |of| of.sockets.open)],
    },
    Metric {
        name: "bytes_total",
        kind: "counter",
        help: "Octets: of TCP's data by socket, of IP packets by packet",
        series: &[
            ("path=\"socket\",direction=\"sent\"", |of| of.sockets.sent_bytes),
            ("path=\"socket\",direction=\"received\"", |of| of.sockets.received_bytes),
            ("path=\"packet\",direction=\"sent\"", |of| of.packets.sent_bytes),
            ("path=\"packet\",direction=\"received\"", |of| of.packets.received_bytes),
        ],
    },
    Metric {
        name: "segments_total",
        kind: "counter",
        help: "TCP segments of this node's sockets",
        series: &[
            ("path=\"socket\",direction=\"sent\"", |of| of.sockets.sent_segments),
            ("path=\"socket\",direction=\"received\"", |of| of.sockets.received_segments),
        ],
    },
    Metric {
        name: "retransmits_total",
        kind: "counter",
        help: "TCP segments that this node's sockets sent again",
        series: &[("path=\"socket\"", |of| of.sockets.retransmits)],
    },
    Metric {
        name: "packets_total",
        kind: "counter",
        help: "Packets that this node translated",
        series: &[
            ("path=\"packet\",direction=\"sent\"", |of| of.packets.sent_packets),
            ("path=\"packet\",direction=\"received\"", |of| of.packets.received_packets),
        ],
    },
];

fn text(subject: &str, of: &[(String, Traffic)]) -> String {
    let mut text = String::new();
    for Metric { name, kind, help, series } in METRICS {
        let name = format!("mizzen_{subject}_{name}");
        // Writing to a String can't fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, traffic) in of.iter().filter(|(_, traffic)| !traffic.is_none()) {
            let by_socket = traffic.sockets != SocketTraffic::default();
            let by_packet = traffic.packets != PacketTraffic::default();
            for (more, value) in series {
                let wanted = if more.contains("\"socket\"") { by_socket } else { by_packet };
                if wanted {
                    let _ = writeln!(text, "{name}{{{labels},{more}}} {}", value(traffic));
                }
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        desired::SetKey,
        model::{ObjectKey, service::Protocol},
        traffic::accounts::BackendTraffic,
    };

    fn port(name: &str, total: Traffic) -> PortTraffic {
        let service = ObjectKey::new("default", name);
        let key = SetKey { service, port: "".into(), protocol: Protocol::Udp, ipv6: true };
        let at = "[fd00::1]:53".parse().unwrap();
        let backends = vec![BackendTraffic { at, id: 1, traffic: total }];
        PortTraffic { key, set: 1, total, backends }
    }

    #[test]
    fn only_what_was_used_has_series() {
        let sockets = SocketTraffic { connections: 7, received_bytes: 9, ..Default::default() };
        let packets = PacketTraffic { flows: 2, sent_packets: 3, ..Default::default() };
        let ports = [
            port("idle", Traffic::default()),
            port("dns", Traffic { sockets, ..Traffic::default() }),
            port("web", Traffic { packets, ..Traffic::default() }),
        ];
        let text = services(&ports);
        let of = |name: &str| {
            format!(
                "namespace=\"default\",service=\"{name}\",port=\"\",protocol=\"UDP\",\
                 ip_family=\"IPv6\""
            )
        };
        for line in [
            format!("mizzen_service_connections_total{{{},path=\"socket\"}} 7", of("dns")),
            format!("mizzen_service_connections_total{{{},path=\"packet\"}} 2", of("web")),
            format!(
                "mizzen_service_bytes_total{{{},path=\"socket\",direction=\"received\"}} 9",
                of("dns")
            ),
            format!(
                "mizzen_service_packets_total{{{},path=\"packet\",direction=\"sent\"}} 3",
                of("web")
            ),
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}\n{text}");
        }
        assert!(!text.contains("idle"), "{text}");
        assert!(
            !text.lines().any(|line| line.contains("dns") && line.contains("packet")),
            "{text}"
        );
        let heads = text.lines().filter(|line| line.starts_with("# TYPE")).count();
        assert_eq!(heads, METRICS.len());
        let text = backends(&ports);
        let backend = format!("{},backend=\"[fd00::1]:53\",path=\"socket\"", of("dns"));
        let line = format!("\nmizzen_backend_connections_total{{{backend}}} 7\n");
        assert!(text.contains(&line), "{text}");
    }
}
