//! The services that every contender serves: the same for all of them, numbered, computed.

use std::net::Ipv4Addr;

use super::triple;

/// How many services the figures over their number are taken at.
pub const SIZES: [u32; 5] = [1, 10, 1_000, 5_000, 30_000];
/// The last size at which the rule sets take part: loading more takes them minutes.
pub const RULES_MAX: u32 = 5_000;
/// How many endpoints a service has that nobody calls.
pub const ENDPOINTS: u32 = 2;

/// Port of the echo server, at the service and behind it.
pub const ECHO_PORT: u16 = 7777;
/// Port of iperf3.
pub const IPERF_PORT: u16 = 5201;
/// Port where datagrams are taken and not read.
pub const SINK_PORT: u16 = 9999;
/// The node port that leads to the sink.
pub const SINK_NODE_PORT: u16 = 30_999;

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// As rule sets spell it: `tcp`.
    Tcp,
    /// As rule sets spell it: `udp`.
    Udp,
}

impl Protocol {
    /// As rule sets spell it.
    pub fn lower(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// As the API spells it.
    pub fn upper(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// A port of a service; its endpoints listen at the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name within the service.
    pub name: &'static str,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub number: u16,
    /// Where it can be reached from outside.
    pub node_port: Option<u16>,
}

/// A service without selector, with its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its number.
    pub number: u32,
    /// Its ClusterIP.
    pub cluster_ip: Ipv4Addr,
    /// Its ports.
    pub ports: &'static [Port],
    /// Addresses of its endpoints.
    pub endpoints: Vec<Ipv4Addr>,
}

const fn tcp(name: &'static str, number: u16) -> Port {
    Port { name, protocol: Protocol::Tcp, number, node_port: None }
}

const fn udp(name: &'static str, number: u16) -> Port {
    Port { name, protocol: Protocol::Udp, number, node_port: None }
}

const ONE_PORT: &[Port] = &[tcp("echo", ECHO_PORT)];
/// The first service serves everything that is measured.
const EVERY_PORT: &[Port] = &[
    tcp("echo", ECHO_PORT),
    udp("echo-udp", ECHO_PORT),
    tcp("iperf", IPERF_PORT),
    Port { node_port: Some(SINK_NODE_PORT), ..udp("sink", SINK_PORT) },
];

/// The service that is called where there are `size` of them: in their middle, so that rules that
/// are walked one by one are walked half on average.
pub fn target(size: u32) -> u32 {
    size / 2
}

/// The ClusterIP of a service.
pub fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 4, 0).to_bits() + number)
}

/// The service with this number, with so many endpoints where nobody calls it.
pub fn service(number: u32, endpoints: u32) -> Service {
    let called = SIZES.map(target).contains(&number);
    let elsewhere = Ipv4Addr::new(10, 128, 0, 0).to_bits() + number * 16;
    Service {
        number,
        cluster_ip: cluster_ip(number),
        ports: if number == 0 { EVERY_PORT } else { ONE_PORT },
        endpoints: if called {
            triple::BACKENDS.to_vec()
        } else {
            (0..endpoints.min(16)).map(|n| Ipv4Addr::from_bits(elsewhere + n)).collect()
        },
    }
}

/// The first `size` services.
pub fn services(size: u32) -> impl Iterator<Item = Service> {
    (0..size).map(|number| service(number, ENDPOINTS))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_services_share_an_address_and_no_two_endpoints_do() {
        let all: Vec<_> = (0..30_000).map(|number| service(number, 10)).collect();
        let ips: BTreeSet<_> = all.iter().map(|service| service.cluster_ip).collect();
        assert_eq!(ips.len(), all.len());
        assert!(ips.iter().all(|ip| ip.octets()[..2] == [10, 96]), "all in the service range");
        let endpoints: Vec<_> =
            all.iter().flat_map(|s| &s.endpoints).filter(|ip| ip.octets()[1] != 244).collect();
        assert_eq!(endpoints.iter().collect::<BTreeSet<_>>().len(), endpoints.len());
    }

    #[test]
    fn whoever_is_called_has_the_backends_that_answer() {
        for size in SIZES {
            assert!(target(size) < size);
            assert_eq!(service(target(size), ENDPOINTS).endpoints, triple::BACKENDS);
        }
    }
}
