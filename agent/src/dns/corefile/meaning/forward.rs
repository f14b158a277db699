//! `forward`: who is asked.

use hickory_proto::op::ResponseCode;

use super::{
    CorefileError, Directive, Served, Surroundings, Warning, number, single, tls, unknown, zone,
};
use crate::dns::{meaning::Forward, notation, route::Policy};

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
        from: notation::zone(&from.text).map_err(|why| from.error(why))?,
        upstreams: Vec::new(),
        // As CoreDNS has it where nothing is said.
        policy: Policy::Random,
        by_tcp: false,
        failover: Vec::new(),
        next: Vec::new(),
        except: Vec::new(),
        max_concurrent: None,
    };
    let mut warnings = Vec::new();
    // What the braces say of TLS counts for all upstreams that are asked over it.
    let of_tls = tls::peer(directive, surroundings)?;
    for word in to {
        let named = notation::upstreams(&word.text, &of_tls, |path| surroundings.read(path).ok());
        for upstream in named.map_err(|why| word.error(why))? {
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
            "failover" => this.failover.extend(codes(line, notation::failing_code)?),
            "next" => this.next.extend(codes(line, notation::response_code)?),
            "force_tcp" => this.by_tcp = true,
            "policy" => this.policy = policy(line)?,
            "max_concurrent" => {
                let most = number(single(line)?, 0, u64::MAX)?.min(MAX_CONCURRENT);
                // 0 is no bound, and there is always one.
                let most = if most == 0 { MAX_CONCURRENT } else { most };
                this.max_concurrent = usize::try_from(most).ok();
            }
            // UDP comes first anyhow; what is said of TLS was read with the upstreams.
            "prefer_udp" | "tls" | "tls_servername" => {}
            "expire"
            | "max_fails"
            | "health_check"
            | "max_connect_attempts"
            | "max_idle_conns"
            | "max_age"
            | "read_timeout"
            | "failfast_all_unhealthy_upstreams" => {
                let option = &line.name.text;
                let what = format!(
                    "forward: {option} has no effect: how an upstream is, its answers tell; \
                     one that failed is asked last, and again after 1 s to 30 s"
                );
                warnings.push(Warning { at: line.name.at.clone(), what });
            }
            _ => return Err(unknown(line, directive)),
        }
    }
    Ok((this, warnings))
}

/// Response codes, at least one.
fn codes(
    line: &Directive,
    read: fn(&str) -> Result<ResponseCode, String>,
) -> Result<Vec<ResponseCode>, CorefileError> {
    if line.arguments.is_empty() {
        let why = format!("{:?} names response codes such as NXDOMAIN", line.name.text);
        return Err(line.name.error(why));
    }
    let codes = line.arguments.iter().map(|word| read(&word.text).map_err(|why| word.error(why)));
    codes.collect()
}

fn policy(line: &Directive) -> Result<Policy, CorefileError> {
    let word = single(line)?;
    notation::policy(&word.text).map_err(|why| word.error(why))
}
