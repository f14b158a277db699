//! The texts of `mizzen pods` and `mizzen routes`.

use super::inspect::{Outcome, columns};
use crate::serve::pod_network::{PodRow, RouteRow};

/// The pods, a line each, with what is damaged of them below.
pub(super) fn pods(body: &str) -> anyhow::Result<(String, Outcome)> {
    let rows: Vec<PodRow> = serde_json::from_str(body)?;
    let healthy = rows.iter().all(|row| row.damage.is_empty());
    let damage: String = rows
        .iter()
        .flat_map(|row| {
            row.damage.iter().map(|what| format!("{}/{}: {what}\n", row.namespace, row.name))
        })
        .collect();
    let heads = [
        "NAMESPACE",
        "NAME",
        "CONTAINER",
        "INTERFACE",
        "ADDRESSES",
        "HOST-LINK",
        "MTU",
        "LIMITS",
        "STATE",
    ];
    let or = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let row = |row: PodRow| {
        vec![
            or(row.namespace),
            or(row.name),
            row.container.chars().take(13).collect(),
            row.ifname,
            row.addresses.join(","),
            row.host_ifname,
            row.mtu.to_string(),
            limits(row.ingress, row.egress),
            row.state,
        ]
    };
    let text = columns(&heads, rows.into_iter().map(row).collect()) + &damage;
    Ok((text, if healthy { Outcome::Ok } else { Outcome::Degraded }))
}

/// What a pod may receive and send, where that is limited: bits per second.
fn limits(ingress: u64, egress: u64) -> String {
    let limit = |way: &str, rate: u64| (rate > 0).then(|| format!("{way} {}", short(rate)));
    let said: Vec<String> =
        [limit("in", ingress), limit("out", egress)].into_iter().flatten().collect();
    if said.is_empty() { "-".to_owned() } else { said.join(", ") }
}

/// A rate in the largest unit that it is a whole number of.
fn short(rate: u64) -> String {
    let units = [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    let whole = units.into_iter().find(|(unit, _)| rate.is_multiple_of(*unit));
    whole.map_or_else(|| rate.to_string(), |(unit, name)| format!("{}{name}", rate / unit))
}

/// The ways to other nodes' pods, a line each.
pub(super) fn routes(body: &str) -> anyhow::Result<(String, Outcome)> {
    let rows: Vec<RouteRow> = serde_json::from_str(body)?;
    let healthy = rows.iter().all(|row| row.state == "ok");
    let or = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let row = |row: RouteRow| {
        let mtu = if row.mtu == 0 { "-".to_owned() } else { row.mtu.to_string() };
        vec![row.node, row.range, row.way, or(row.via), mtu, row.state, row.reason]
    };
    let heads = ["NODE", "RANGE", "WAY", "VIA", "MTU", "STATE", "BECAUSE"];
    let text = columns(&heads, rows.into_iter().map(row).collect());
    Ok((text, if healthy { Outcome::Ok } else { Outcome::Degraded }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cni_32_limits_of_pods_are_said_in_whole_units() {
        assert_eq!(limits(0, 0), "-");
        assert_eq!(limits(24_000_000, 0), "in 24M");
        assert_eq!(limits(1_500_000, 2_000_000_000), "in 1500k, out 2G");
        assert_eq!(limits(0, 1_001), "out 1001");
    }
}
