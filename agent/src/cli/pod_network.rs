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
    let heads =
        ["NAMESPACE", "NAME", "CONTAINER", "INTERFACE", "ADDRESSES", "HOST-LINK", "MTU", "STATE"];
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
            row.state,
        ]
    };
    let text = columns(&heads, rows.into_iter().map(row).collect()) + &damage;
    Ok((text, if healthy { Outcome::Ok } else { Outcome::Degraded }))
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
