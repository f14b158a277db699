//! `ns-per-packet-…`: what a packet costs in each program, by the kernel's test run, and how many
//! instructions its verifier walked through.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::json;

use super::{
    Figure, contender::Seat, frame, maps, mizzen, triple::At, turns::Summary, world::World,
};
use crate::{cluster::up, invoke};

/// How the names of the figures begin.
pub const NS: &str = "ns-per-packet";
/// Instructions that the verifier walked through, over all branches.
pub const VERIFIED: &str = "verified-instructions";

/// The node port of a service whose backend is the node itself at the same port: each run finds the
/// packet as the one before found it.
const ITSELF: u16 = 30_998;
const REPEAT: &str = "200000";

#[derive(Debug, Deserialize)]
struct Program {
    id: u64,
    #[serde(default)]
    name: String,
    #[serde(rename = "type", default)]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct Ran {
    /// Nanoseconds.
    duration: f64,
}

/// Runs the packet programs of a seat with a live agent.
pub fn measure(world: &World, seat: &Seat, rounds: u32) -> Result<Vec<Figure>> {
    let programs = verified(seat)?;
    let node = seat.triple.host.ipv4;
    serve_itself(world, seat)?;
    let client = SocketAddrV4::new(world.layout.client().ipv4, 40_009);
    let pod = SocketAddrV4::new([10, 244, 1, 2].into(), 40_010);
    let port = SocketAddrV4::new(node, ITSELF);
    let nobody = SocketAddrV4::new(node, ITSELF - 1);
    let none = ("a frame that is not IP (the floor)", frame::not_ip());
    let packets = |name: &str| match name {
        "tc_uplink_ingress" => vec![
            none.clone(),
            ("of no service", frame::udp(client, nobody)),
            ("of a flow that is translated", frame::udp(client, port)),
        ],
        "tc_pod_ingress" => vec![
            none.clone(),
            ("of no service", frame::udp(pod, nobody)),
            ("of a flow that is translated", frame::udp(pod, port)),
        ],
        "tc_uplink_egress" => vec![
            none.clone(),
            ("of no service", frame::udp(nobody, client)),
            ("the answer of a translated flow", frame::udp(port, client)),
        ],
        "tc_loopback_egress" => {
            let itself = SocketAddrV4::new(Ipv4Addr::LOCALHOST, ITSELF);
            vec![
                none.clone(),
                ("from 127.0.0.1 to itself", frame::udp(itself, itself)),
                ("of no service, from the node to itself", frame::udp(port, nobody)),
            ]
        }
        "tc_pod_egress" => vec![none.clone(), ("of no service", frame::udp(client, pod))],
        _ => Vec::new(),
    };
    let mut figures = Vec::new();
    for (program, instructions) in &programs {
        for (what, packet) in packets(&program.name) {
            let samples: Vec<f64> =
                (0..rounds).map(|_| test_run(seat, program, &packet)).collect::<Result<_>>()?;
            let name = format!("{NS}-{}", program.name);
            figures.push(Figure::of(name, Summary::of(&samples), "ns", what, rounds));
        }
        #[expect(clippy::cast_precision_loss, reason = "a million at most")]
        let instructions = *instructions as f64;
        figures.push(Figure::once(VERIFIED, instructions, "", program.name.clone()));
    }
    Ok(figures)
}

/// The agent's programs with their verified instructions, by name.
fn verified(seat: &Seat) -> Result<Vec<(Program, u64)>> {
    let list = invoke::capture(&mut invoke::command("bpftool", ["--json", "prog", "show"]))?;
    let all: Vec<Program> = serde_json::from_str(&list).context("bpftool printed no programs")?;
    let descriptors = maps::descriptors(&mizzen::running(&seat.triple)?)?;
    let mut found: Vec<(Program, u64)> = Vec::new();
    for program in all.into_iter().filter(|program| !program.name.is_empty()) {
        let of_it = |text: &&String| maps::field(text, "prog_id") == Some(program.id);
        let text = descriptors.iter().find(of_it);
        if let Some(count) = text.and_then(|text| maps::field(text, "verified_insns")) {
            found.push((program, count));
        }
    }
    found.sort_by(|(a, _), (b, _)| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
    found.dedup_by(|(a, _), (b, _)| a.name == b.name);
    Ok(found)
}

/// One test run, in the node's namespace.
fn test_run(seat: &Seat, program: &Program, packet: &[u8]) -> Result<f64> {
    let path = seat.triple.layout.dir.join("packet");
    fs::write(&path, packet).with_context(|| format!("can't write {}", path.display()))?;
    let (id, path) = (program.id.to_string(), path.display().to_string());
    let argv = ["bpftool", "--json", "prog", "run", "id", &id, "data_in", &path, "repeat", REPEAT];
    let text = seat.triple.capture(At::Node, &argv)?;
    let ran: Ran = serde_json::from_str(&text)
        .with_context(|| format!("bpftool printed of {}: {text}", program.name))?;
    Ok(ran.duration)
}

/// Creates the service that leads back to the node, and waits until its port is served.
fn serve_itself(world: &World, seat: &Seat) -> Result<()> {
    const NAME: &str = "bench-itself";
    let port = json!({"name": "x", "port": ITSELF, "protocol": "UDP"});
    let mut service_port = port.clone();
    service_port["nodePort"] = ITSELF.into();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME},
        "spec": {"type": "NodePort", "ports": [service_port], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack"},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": NAME, "labels": {"kubernetes.io/service-name": NAME}},
        "addressType": "IPv4", "ports": [port],
        "endpoints": [{"addresses": [seat.triple.host.ipv4], "conditions": {"ready": true}}],
    });
    let writes = || mizzen::metrics(&seat.triple)?.get("mizzen_map_set_flips_total");
    let before = writes()?;
    for (path, object) in [
        ("/api/v1/namespaces/default/services", &service),
        ("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice),
    ] {
        world.api.expect("POST", path, Some(("application/json", &object.to_string())))?;
    }
    up::wait(&seat.triple.layout, "the service of the test run", || {
        Ok(if writes()? > before { Ok(()) } else { Err("no set was written".to_owned()) })
    })
}
