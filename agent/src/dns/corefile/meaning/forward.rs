//! `forward`: who is asked.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use super::{
    CorefileError, Directive, Served, Surroundings, Warning, Word, number, single, tls, unknown,
    zone,
};
use crate::dns::{
    meaning::Forward,
    resolv_conf,
    route::{Policy, Upstream},
    tls::Peer,
};

/// The port of an upstream that names none.
const PORT: u16 = 53;
/// More than this is no bound.
const MAX_CONCURRENT: u64 = 10_000;

pub(super) fn read(
    directive: &Directive,
    served: &Served,
    surroundings: &dyn Surroundings,
) -> Result<(Forward, Vec<Warning>), CorefileError> {
    let [from, to @ ..] = &directive.arguments[..] else {
        return Err(directive.name.error("forward names a zone and who is asked"));
    };
    if to.is_empty() {
        return Err(from.error("behind the zone stands who is asked"));
    }
    let mut this = Forward {
        from: zone::parse(&from.text).map_err(|why| from.error(why))?,
        upstreams: Vec::new(),
        // As CoreDNS has it where nothing is said.
        policy: Policy::Random,
        by_tcp: false,
        except: Vec::new(),
        max_concurrent: None,
    };
    let mut warnings = Vec::new();
    // What the braces say of TLS counts for all upstreams that are asked over it.
    let of_tls = tls::peer(directive, surroundings)?;
    for word in to {
        for upstream in upstreams(word, &of_tls, surroundings)? {
            let address = upstream.address;
            if address.port() == served.port && served.addresses.contains(&address.ip()) {
                let what = format!("{address} is this agent itself: its own names need no asking");
                warnings.push(Warning { at: word.at.clone(), what });
            } else if !this.upstreams.contains(&upstream) {
                this.upstreams.push(upstream);
            }
        }
    }
    for line in &directive.body {
        match &*line.name.text {
            "except" => this.except.extend(zone::list(&line.arguments)?),
            "force_tcp" => this.by_tcp = true,
            "policy" => this.policy = policy(line)?,
            "max_concurrent" => {
                let most = number(single(line)?, 0, u64::MAX)?.min(MAX_CONCURRENT);
                // 0 is no bound, and there is always one.
                let most = if most == 0 { MAX_CONCURRENT } else { most };
                this.max_concurrent = usize::try_from(most).ok();
            }
            // UDP comes first anyhow; an upstream's health is known by its answers; what is said
            // of TLS was read with the upstreams.
            "prefer_udp"
            | "tls"
            | "tls_servername"
            | "expire"
            | "max_fails"
            | "health_check"
            | "max_connect_attempts"
            | "max_idle_conns"
            | "max_age"
            | "read_timeout"
            | "failfast_all_unhealthy_upstreams" => {}
            _ => return Err(unknown(line, directive)),
        }
    }
    Ok((this, warnings))
}

fn policy(line: &Directive) -> Result<Policy, CorefileError> {
    let word = single(line)?;
    match &*word.text {
        "random" => Ok(Policy::Random),
        "round_robin" => Ok(Policy::RoundRobin),
        "sequential" => Ok(Policy::Sequential),
        other => {
            let why = format!("policy {other:?} must be random, round_robin or sequential");
            Err(word.error(why))
        }
    }
}

/// Who a word names: an address, with a port perhaps and over TLS perhaps, or those in a file such
/// as `/etc/resolv.conf`.
fn upstreams(
    word: &Word,
    of_tls: &Peer,
    surroundings: &dyn Surroundings,
) -> Result<Vec<Upstream>, CorefileError> {
    let text = match word.text.split_once("://") {
        Some(("dns", rest)) => rest,
        Some(("tls", rest)) => return Ok(vec![tls::upstream(word, rest, of_tls)?]),
        Some((other, _)) => {
            let why = format!(
                "{other}:// is not supported: upstreams are asked by UDP and TCP, and over TLS"
            );
            return Err(word.error(why));
        }
        None => &word.text,
    };
    if let Some(address) = address(text, PORT) {
        return Ok(vec![address.into()]);
    }
    let read = |path: &Path| surroundings.read(path).ok();
    let servers = resolv_conf::name_servers(Path::new(text), read).ok_or_else(|| {
        let why = format!("{text:?} is neither an address nor a file such as /etc/resolv.conf");
        word.error(why)
    })?;
    Ok(servers.into_iter().map(Upstream::from).collect())
}

/// An address, with `port` where it names none.
pub(super) fn address(text: &str, port: u16) -> Option<SocketAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    bare.map(|ip| (ip, port).into()).ok().or_else(|| text.parse().ok())
}
