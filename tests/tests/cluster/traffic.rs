//! Traffic through the programs, by every way that the example offers.

use anyhow::{Context, Result, ensure};
use xtask::cluster::{
    exec::{self, Place},
    process, traffic, up,
};

use super::{Check, World};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] = &[
    ("up_again_starts_nothing_anew", up_again_starts_nothing_anew),
    ("a_client_s_socket_reports_the_service_as_its_peer", peer_is_the_service),
    ("b20_pods_keep_their_address_towards_a_cluster_ip", pods_keep_their_address),
    ("b27_clients_outside_are_masqueraded_to_the_node", outside_is_masqueraded),
    ("b27_node_ports_answer_over_udp", udp_node_ports),
    ("b137_a_node_reaches_a_cluster_ip_and_its_own_node_port", from_the_node),
    ("b60_a_node_port_of_the_other_node_is_reached_from_a_pod", other_node_from_a_pod),
];

fn up_again_starts_nothing_anew(world: &World) -> Result<()> {
    let before = process::started(&world.layout);
    up::up(&world.layout)?;
    up::apply_hello(&world.layout, &world.api)?;
    ensure!(before == process::started(&world.layout), "a second up changed the processes");
    Ok(())
}

/// The service's addresses, IPv4 and IPv6, and its node port.
pub(crate) fn hello(world: &World) -> Result<(Vec<String>, u64)> {
    let service = world.api.get("/api/v1/namespaces/default/services/hello")?;
    let ips = service["spec"]["clusterIPs"].as_array().context("no clusterIPs")?;
    let ips: Vec<_> = ips.iter().filter_map(|ip| ip.as_str()).map(str::to_owned).collect();
    ensure!(ips.len() == 2, "hello is not dual-stack: {ips:?}");
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().context("no node port")?;
    Ok((ips, port))
}

/// A pod of the example, as a place to run commands in.
pub(crate) fn pod(world: &World) -> Result<Place> {
    Ok(Place::Pod(traffic::first_pod(&world.api)?))
}

fn peer_is_the_service(world: &World) -> Result<()> {
    let (ips, _) = hello(world)?;
    for ip in ips {
        // curl asks its socket: getpeername().
        let format = ["--output", "/dev/null", "--write-out", "%{remote_ip} %{remote_port}"];
        let url = format!("http://{}/", traffic::host(&ip));
        let mut argv = vec!["curl", "--silent", "--fail", "--max-time", "5"];
        argv.extend(format);
        argv.push(&url);
        let said = exec::capture(&world.layout, &pod(world)?, &argv)?;
        ensure!(said.trim() == format!("{ip} 80"), "the socket's peer is {said}, not {ip} 80");
    }
    Ok(())
}

fn pods_keep_their_address(world: &World) -> Result<()> {
    let (ips, _) = hello(world)?;
    let Place::Pod(name) = pod(world)? else { unreachable!("a pod was asked for") };
    let object = world.api.get(&format!("/api/v1/namespaces/default/pods/{name}"))?;
    let addresses = object["status"]["podIPs"].to_string();
    for ip in ips {
        let url = format!("http://{}/", traffic::host(&ip));
        let answer = traffic::get(&world.layout, &pod(world)?, &url)?;
        let client = address(answer["client"].as_str().context("no client")?);
        ensure!(addresses.contains(&client), "the server saw {client}, the pod has {addresses}");
    }
    Ok(())
}

fn outside_is_masqueraded(world: &World) -> Result<()> {
    let (_, port) = hello(world)?;
    let client = Place::Host("client".into());
    for node in world.layout.node_hosts() {
        for ip in [node.ipv4.to_string(), node.ipv6.to_string()] {
            let url = format!("http://{}:{port}/", traffic::host(&ip));
            let answer = traffic::get(&world.layout, &client, &url)?;
            let seen = address(answer["client"].as_str().context("no client")?);
            ensure!(seen == ip, "the server saw {seen}, not the node's {ip}");
        }
    }
    Ok(())
}

fn udp_node_ports(world: &World) -> Result<()> {
    let service = world.api.get("/api/v1/namespaces/default/services/hello")?;
    let port = service["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|port| port["protocol"] == "UDP")
        .and_then(|port| port["nodePort"].as_u64())
        .context("hello has no UDP port")?;
    let load = world.layout.binary("xtask").display().to_string();
    for node in world.layout.node_hosts() {
        for ip in [node.ipv4.to_string(), node.ipv6.to_string()] {
            let target = format!("{}:{port}", traffic::host(&ip));
            let argv = [load.as_str(), "load", "udp", &target];
            exec::capture(&world.layout, &Place::Host("client".into()), &argv)?;
        }
    }
    Ok(())
}

fn from_the_node(world: &World) -> Result<()> {
    let (ips, port) = hello(world)?;
    let node = &world.layout.node_hosts()[0];
    let place = Place::Host(node.name.clone());
    let mut urls: Vec<_> = ips.iter().map(|ip| format!("http://{}/", traffic::host(ip))).collect();
    for ip in [node.ipv4.to_string(), node.ipv6.to_string()] {
        urls.push(format!("http://{}:{port}/", traffic::host(&ip)));
    }
    for url in urls {
        traffic::get(&world.layout, &place, &url)?;
    }
    Ok(())
}

fn other_node_from_a_pod(world: &World) -> Result<()> {
    let (_, port) = hello(world)?;
    for node in world.layout.node_hosts() {
        for ip in [node.ipv4.to_string(), node.ipv6.to_string()] {
            let url = format!("http://{}:{port}/", traffic::host(&ip));
            traffic::get(&world.layout, &pod(world)?, &url)?;
        }
    }
    Ok(())
}

/// `192.0.2.1:80` and `[2001:db8::1]:80` without the port.
fn address(socket: &str) -> String {
    let address = socket.rsplit_once(':').map_or(socket, |(address, _)| address);
    let address = address.trim_matches(['[', ']']);
    address.strip_prefix("::ffff:").unwrap_or(address).to_owned()
}
