//! What is written of blocks, with the files that they name, as server blocks.

use std::path::Path;

use hickory_proto::rr::Name;

use super::{
    Autopath, Block, Blocks, Cache, Forward, Hosts, Kubernetes, Meant as _, Peer, Tls, zones,
};
use crate::{
    dns::{
        cache::{Keeping, Prefetch},
        chain::{
            autopath::{self, Search},
            query_log::LogRule,
        },
        config::Config,
        corefile::Surroundings,
        hosts,
        meaning::{self, CONTRADICTION, Saying, Served, ServerBlock, contradiction},
        notation, resolv_conf,
        route::Policy,
        tls::{Identity, Listener, PORT},
        zone::{Trees, naming::Naming},
    },
    model::labels::Selector,
};

/// Where the node's own search list is.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long clients may keep names of a table where nothing is said, in seconds.
const HOSTS_TTL: u32 = 3600;

/// The server blocks that `blocks` are, and what of them is left out.
pub fn read(
    blocks: &Blocks,
    served: &Served,
    surroundings: &dyn Surroundings,
) -> Result<(Vec<ServerBlock>, Vec<String>), String> {
    let reader = Reader { served, surroundings };
    let mut all: Vec<ServerBlock> = Vec::new();
    let mut warnings = Vec::new();
    for (place, written) in blocks.0.iter().enumerate() {
        let at = |why: String| format!("dnsBlocks[{place}]: {why}");
        let block = reader.block(written).map_err(at)?;
        let seen = all.iter().flat_map(|block| &block.zones);
        if let Some(zone) = seen.into_iter().find(|zone| block.zones.contains(zone)) {
            return Err(at(format!("{zone} has a block already")));
        }
        if let (Some(tls), Some(other)) = (&block.tls, all.iter().find_map(|all| all.tls.as_ref()))
            && tls != other
        {
            let why = "all blocks that are answered over TLS have one port and certificate";
            return Err(at(why.to_owned()));
        }
        let pods = block.chain.autopath.as_ref().map(|autopath| &autopath.search);
        if matches!(pods, Some(Search::Pods(_))) && !served.connects_pods {
            warnings.push(at("autopath: not done, since pods are not connected by this agent \
                              (--cni=false)"
                .to_owned()));
        }
        all.push(block);
    }
    if let Some((place, saying)) = contradiction(&all, &served.domain) {
        let what = saying.options().join(", ");
        return Err(format!("dnsBlocks[{place}]: kubernetes: {what}: {CONTRADICTION}"));
    }
    // Over TLS the same is answered as in the clear, by all blocks or by none.
    let tls = all.iter().find_map(|block| block.tls.clone());
    if let Some(place) = all.iter().position(|block| tls.is_some() && block.tls.is_none()) {
        return Err(format!("dnsBlocks[{place}]: it needs the tls that other blocks have"));
    }
    Ok((all, warnings))
}

struct Reader<'a> {
    served: &'a Served,
    surroundings: &'a dyn Surroundings,
}

impl Reader<'_> {
    fn block(&self, written: &Block) -> Result<ServerBlock, String> {
        let own = zones(&written.zones, &[Name::root()])?;
        let mut block = ServerBlock {
            hosts: written.hosts.as_ref().map(|hosts| self.hosts(hosts)).transpose()?,
            kubernetes: written.kubernetes.as_ref().map(|all| self.kubernetes(all)).transpose()?,
            keeping: Some(written.cache.as_ref().map_or(Ok(Keeping::default()), keeping)?),
            loadbalance: written.loadbalance.unwrap_or(true),
            forwards: written
                .forward
                .iter()
                .map(|forward| self.forward(forward))
                .collect::<Result<_, _>>()?,
            tls: written.tls.as_ref().map(|tls| self.tls(tls)).transpose()?,
            errors: written.errors.as_ref().map(|errors| errors.meant()).transpose()?,
            ..ServerBlock::default()
        };
        let chain = &mut block.chain;
        chain.minimal = written.minimal;
        for rule in &written.rewrite {
            chain.rewrites.push(rule.meant()?);
        }
        for template in &written.template {
            let mut template = template.meant()?;
            if template.zones.is_empty() {
                template.zones.clone_from(&own);
            }
            chain.templates.push(template);
        }
        for access in &written.acl {
            let mut access = access.meant()?;
            if access.zones.is_empty() {
                access.zones.clone_from(&own);
            }
            chain.access.push(access);
        }
        chain.log =
            written.log.iter().map(|log| log.meant()).collect::<Result<Vec<LogRule>, _>>()?;
        chain.dns64 = written.dns64.as_ref().map(|dns64| dns64.meant()).transpose()?;
        chain.payload = written.bufsize.as_ref().map(|size| size.meant()).transpose()?;
        let autopath = written.autopath.as_ref();
        chain.autopath = autopath.map(|autopath| self.autopath(autopath, &own)).transpose()?;
        block.zones = own;
        Ok(block)
    }

    fn kubernetes(&self, written: &Kubernetes) -> Result<meaning::Kubernetes, String> {
        let own = Config::default();
        let through = zones(written.fallthrough.as_ref().unwrap_or(&Vec::new()), &[])?;
        let passes = |zone: &Name| through.iter().any(|from| from.zone_of(zone));
        let (v4, v6) = (notation::zone("in-addr.arpa")?, notation::zone("ip6.arpa")?);
        let mut zones = vec![self.served.domain.clone()];
        let mut addresses = Trees::BOTH;
        // Where something falls through, all else is kept.
        if written.fallthrough.is_some() {
            addresses = Trees { v4: passes(&v4), v6: passes(&v6) };
            zones.extend([v4, v6]);
        }
        let naming = Naming {
            namespaces: written.namespaces.iter().map(|name| name.as_str().into()).collect(),
            namespace_labels: written.namespace_labels.as_ref().map(|of| of.meant()).transpose()?,
            labels: written.labels.as_ref().map_or(Ok(Selector::default()), |of| of.meant())?,
            endpoint_pod_names: written.endpoint_pod_names,
            no_endpoints: written.no_endpoints,
            ignore_empty_services: written.ignore_empty_services,
        };
        if let Some(why) = naming.contradiction() {
            return Err(format!("kubernetes: {why}"));
        }
        let says = |saying: &Saying| match saying {
            Saying::Pods => written.pods.is_some(),
            Saying::Ttl => written.ttl.is_some(),
            Saying::Naming => naming != Naming::default(),
        };
        Ok(meaning::Kubernetes {
            written: Saying::ALL.into_iter().filter(says).collect(),
            pods: written.pods.as_ref().map_or(Ok(own.pod_names), |pods| pods.meant())?,
            ttl: written.ttl.unwrap_or(own.ttl),
            names_fall_through: passes(&self.served.domain),
            addresses_fall_through: addresses,
            zones,
            through,
            naming,
        })
    }

    fn forward(&self, written: &Forward) -> Result<meaning::Forward, String> {
        let peer = written.tls.as_ref().map(|tls| self.peer(tls)).transpose()?.unwrap_or_default();
        let mut upstreams = Vec::new();
        for text in &written.to {
            let read = |path: &Path| self.surroundings.read(path).ok();
            for upstream in notation::upstreams(text, &peer, read)? {
                let address = upstream.address;
                let is_own = address.port() == self.served.port
                    && self.served.addresses.contains(&address.ip());
                if !is_own && !upstreams.contains(&upstream) {
                    upstreams.push(upstream);
                }
            }
        }
        if written.to.is_empty() {
            return Err("forward: to names who is asked".to_owned());
        }
        Ok(meaning::Forward {
            from: written
                .from
                .as_ref()
                .map_or(Ok(Name::root()), |from| notation::zone(&from.0.0))?,
            upstreams,
            policy: written
                .policy
                .as_ref()
                .map_or(Ok(Policy::default()), |policy| policy.meant())?,
            by_tcp: written.force_tcp,
            failover: written.failover.iter().map(|code| code.meant()).collect::<Result<_, _>>()?,
            next: written.next.iter().map(|code| code.meant()).collect::<Result<_, _>>()?,
            except: zones(&written.except, &[])?,
            max_concurrent: written.max_concurrent,
        })
    }

    fn peer(&self, written: &Peer) -> Result<crate::dns::tls::Peer, String> {
        let identity = match (&written.cert_file, &written.key_file) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(self.identity(certificate, key)?),
            _ => return Err("tls: certFile and keyFile go together".to_owned()),
        };
        let authorities = written.ca_file.as_deref().map(|path| self.text(path)).transpose()?;
        let server_name = written.server_name.clone();
        Ok(crate::dns::tls::Peer { server_name, authorities, identity })
    }

    fn tls(&self, written: &Tls) -> Result<Listener, String> {
        let client_ca = written.client_ca_file.as_deref();
        let listener = Listener {
            port: written.port.unwrap_or(PORT),
            identity: self.identity(&written.cert_file, &written.key_file)?,
            authorities: client_ca.map(|path| self.text(path)).transpose()?,
        };
        listener.server().map_err(|why| format!("tls: {why}"))?;
        Ok(listener)
    }

    fn identity(&self, certificate: &Path, key: &Path) -> Result<Identity, String> {
        Ok(Identity { certificates: self.text(certificate)?, key: self.text(key)? })
    }

    fn text(&self, path: &Path) -> Result<String, String> {
        let read = self.surroundings.read(path);
        read.map_err(|error| format!("{} can't be read: {error}", path.display()))
    }

    fn hosts(&self, written: &Hosts) -> Result<hosts::Hosts, String> {
        let mut table = hosts::Hosts::new(written.ttl.unwrap_or(HOSTS_TTL));
        table.no_reverse = written.no_reverse;
        table.fallthrough = zones(&written.fallthrough, &[])?;
        if let Some(path) = &written.file {
            // One that is not there yet is an empty one.
            let text = self.surroundings.read_if_there(path);
            table.extend(&text.map_err(|error| {
                format!("hosts: the table {} can't be read: {error}", path.display())
            })?);
        }
        for (address, names) in &written.entries {
            table.extend(&format!("{address} {}\n", names.join(" ")));
        }
        Ok(table)
    }

    fn autopath(&self, written: &Autopath, own: &[Name]) -> Result<autopath::Autopath, String> {
        let search = if let Some(path) = &written.file {
            Search::List(resolv_conf::search_list(&self.text(path)?))
        } else {
            let text = self.surroundings.read(Path::new(RESOLV_CONF)).unwrap_or_default();
            Search::Pods(resolv_conf::search_list(&text))
        };
        Ok(autopath::Autopath { zones: zones(&written.zones, own)?, search })
    }
}

fn keeping(written: &Cache) -> Result<Keeping, String> {
    if written.disabled {
        return Ok(Keeping::NOTHING);
    }
    let mut keeping = Keeping::default();
    for (time, place) in [
        (&written.min_ttl, &mut keeping.ttl.0),
        (&written.max_ttl, &mut keeping.ttl.1),
        (&written.denial_min_ttl, &mut keeping.negative_ttl.0),
        (&written.denial_max_ttl, &mut keeping.negative_ttl.1),
        (&written.servfail_ttl, &mut keeping.failure_ttl),
        (&written.serve_stale, &mut keeping.stale),
    ] {
        if let Some(time) = time {
            *place = time.meant()?;
        }
    }
    for (least, most) in [&mut keeping.ttl, &mut keeping.negative_ttl] {
        *least = (*least).min(*most);
    }
    keeping.failure_ttl = keeping.failure_ttl.min(notation::LONGEST_FAILURE);
    if let Some(prefetch) = &written.prefetch {
        let own = Keeping::default().prefetch;
        let pause = prefetch.pause.as_ref().map(|time| time.meant()).transpose()?;
        keeping.prefetch = own.filter(|_| prefetch.requests > 0).map(|own| Prefetch {
            hits: prefetch.requests,
            pause: pause.unwrap_or(own.pause),
            percent: prefetch.percent.unwrap_or(own.percent).min(90),
        });
    }
    Ok(keeping)
}
