//! Why a name is answered as it is: the answer itself, by the way that clients get theirs, and what
//! the same code finds on that way.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr as _,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType, rdata::opt::EdnsCode},
};
use serde::{Deserialize, Serialize};

use super::{
    forward::knows::Kept,
    message::Transport,
    name::LowerName,
    server::{
        Begun, Resolver,
        trail::{Met, Trail},
    },
    zone::{Found, Zone},
};
use crate::model::{ObjectKey, snapshot::Snapshot};

/// How many dots a name needs for being asked for as it is before the search list (`ndots` of pods).
const NDOTS: usize = 5;

/// One question that a client would put, and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// The full name.
    pub name: String,
    /// The type that is asked for.
    pub r#type: String,
    /// The response code; `no answer` where an `acl` says that there is none.
    pub code: String,
    /// The records of the answer, as in a zone file.
    pub answers: Vec<String>,
    /// Why, as the answer says it itself (RFC 8914); empty where it says nothing.
    pub reason: String,
    /// How long the answer took, in milliseconds.
    pub took_ms: u64,
    /// Where it is from: what the question met on its way, in order.
    pub sources: Vec<Source>,
}

/// Where an answer is from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// `cluster`, `hosts`, `cache`, `upstream` or `nobody`; or the directive of a server block's
    /// step that did something, such as `rewrite`.
    pub kind: String,
    /// The name that was asked for there: a rewritten one, an alias' target, another one of the
    /// search list.
    pub name: String,
    /// The zone that has the name: the cluster's, or that of a route.
    pub zone: String,
    /// What stands at the name: `Service default/web`, `EndpointSlice default/web-x2x`, …; what a
    /// step did.
    pub objects: Vec<String>,
    /// Who may be asked, in order.
    pub upstreams: Vec<String>,
    /// Which of them answered: now, or when the answer was kept. None where none did.
    #[serde(default)]
    pub answered_by: Option<String>,
    /// For how many seconds the answer has been kept, where it is.
    pub age_seconds: Option<u64>,
    /// For how many seconds it still is; 0 where it has outlived its time.
    pub left_seconds: Option<u64>,
}

impl Explained {
    /// Whether there is something of that name and type.
    pub fn found(&self) -> bool {
        self.code == NO_ERROR && !self.answers.is_empty()
    }
}

const NO_ERROR: &str = "NOERROR";
const NO_ANSWER: &str = "no answer";

/// The full names that a pod in `namespace` tries for `name`, in its libc's order: its search list is
/// the cluster's, as `domain` has it, and the node's behind it. For a client elsewhere the name as it
/// is; of an address it is its name in the reverse tree.
pub fn candidates(
    name: &str,
    namespace: Option<&str>,
    (domain, of_node): (&Name, &[Name]),
) -> Result<Vec<Name>, String> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(vec![Name::from(address)]);
    }
    let wrong = |error| format!("{name:?} is no domain name: {error}");
    let mut bare = Name::from_str(name).map_err(|error| wrong(error.to_string()))?;
    let full = bare.is_fqdn();
    let mut all = Vec::new();
    if let Some(namespace) = namespace.filter(|_| !full) {
        let of_namespace = [namespace, "svc"];
        let of_cluster = [&of_namespace[..], &["svc"], &[]].into_iter().map(|search| {
            let suffix = Name::from_labels(search.iter().map(|label| label.as_bytes()))?;
            suffix.append_domain(domain)
        });
        let search = of_cluster.flatten().chain(of_node.iter().cloned());
        // One that would be too long is not tried.
        all.extend(search.filter_map(|suffix| bare.clone().append_domain(&suffix).ok()));
    }
    bare.set_fqdn(true);
    let dots = name.matches('.').count();
    let place = if dots < NDOTS { all.len() } else { 0 };
    all.insert(place, bare);
    Ok(all)
}

/// Asks as `client` would, and tells what the answer is made of.
pub async fn explain(
    resolver: &Resolver,
    snapshot: &Snapshot,
    (name, kind): (&Name, RecordType),
    client: IpAddr,
) -> Result<Explained, String> {
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    message.set_edns(Edns::new());
    let octets = message.to_vec().map_err(|error| error.to_string())?;
    // No client has port 0: nothing could be sent to it.
    let (client, trail) = (SocketAddr::new(client, 0), Trail::noted());
    let since = Instant::now();
    let answered = match resolver.begin_on(&octets, Transport::Tcp, client, trail.clone()) {
        Begun::Done(answer) => Some(answer),
        Begun::Waits(waiting) => Some(resolver.finish(*waiting).await),
        Begun::Nothing => None,
    };
    let took = since.elapsed();
    let answer = answered.map(|octets| Message::from_vec(&octets)).transpose();
    let answer = answer.map_err(|error| error.to_string())?;
    let zone = resolver.zone();
    let sources = trail.met().into_iter().map(|met| source(&zone, snapshot, met)).collect();
    Ok(Explained {
        name: name.to_string(),
        r#type: kind.to_string(),
        code: answer
            .as_ref()
            .map_or(NO_ANSWER.to_owned(), |said| code(said.metadata.response_code)),
        answers: answer.iter().flat_map(|said| &said.answers).map(ToString::to_string).collect(),
        reason: answer.as_ref().map(reason).unwrap_or_default(),
        took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        sources,
    })
}

fn code(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => NO_ERROR.to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => other.to_string(),
    }
}

/// The text of the option that explains, behind its code.
fn reason(answer: &Message) -> String {
    let options = answer.edns.iter().flat_map(|edns| edns.options().as_ref());
    let texts = options.filter_map(|(code, option)| {
        let octets: Vec<u8> = (*code == EdnsCode::from(15)).then(|| option.try_into().ok())??;
        Some(String::from_utf8_lossy(octets.get(2..)?).into_owned())
    });
    texts.collect::<Vec<_>>().join("; ")
}

/// What a question met, as a source of its answer.
fn source(zone: &Zone, snapshot: &Snapshot, met: Met) -> Source {
    let (question, in_hosts, known, asked) = match met {
        Met::Step { step, name, what } => {
            let (kind, name) = (step.to_owned(), name.to_string());
            return Source { kind, name, objects: vec![what], ..Source::default() };
        }
        Met::LookUp { question, in_hosts, known, asked } => (question, in_hosts, known, asked),
    };
    let name = question.query.name().to_string();
    let route = known.zone.unwrap_or_default();
    if in_hosts {
        return Source { kind: "hosts".to_owned(), name, zone: route, ..Source::default() };
    }
    let lower = LowerName::of(question.query.name());
    if let Some(place) = zone.look_up(&lower) {
        return Source {
            kind: "cluster".to_owned(),
            name,
            zone: question.query.name().trim_to(place.apex_labels).to_string(),
            objects: objects(&place.found, &lower, place.apex_labels, snapshot),
            ..Source::default()
        };
    }
    let kind = match known.kept {
        // What has outlived its time may have been given all the same, where nobody answered.
        _ if matches!(asked, Some(Some(_))) => "upstream",
        Some(Kept { failure: false, left, .. }) if !left.is_zero() => "cache",
        Some(Kept { failure: true, .. }) => "cache",
        _ if known.upstreams.is_empty() => "nobody",
        _ => "upstream",
    };
    // An answer that has just come has no age, whatever was kept before.
    let kept = known.kept.filter(|_| kind == "cache" || !matches!(asked, Some(Some(_))));
    let answered_by = asked.flatten().or_else(|| kept.and_then(|kept| kept.by));
    let named = |address: SocketAddr| {
        let upstream = known.upstreams.iter().find(|upstream| upstream.address == address);
        upstream.map_or_else(|| address.to_string(), ToString::to_string)
    };
    let seconds = |time: Duration| time.as_secs();
    Source {
        kind: kind.to_owned(),
        name,
        zone: route,
        objects: Vec::new(),
        answered_by: answered_by.map(named),
        upstreams: known.upstreams.iter().map(ToString::to_string).collect(),
        age_seconds: kept.map(|kept| seconds(kept.age)),
        left_seconds: kept.map(|kept| seconds(kept.left)),
    }
}

/// What stands at a name of the cluster, by its objects.
fn objects(
    found: &Found<'_>,
    name: &LowerName,
    apex_labels: usize,
    snapshot: &Snapshot,
) -> Vec<String> {
    match found {
        Found::Missing => Vec::new(),
        Found::Empty => vec!["nothing but names below it".to_owned()],
        Found::Apex => vec!["the zone itself".to_owned()],
        Found::NameServer => vec!["this resolver".to_owned()],
        Found::Version => vec!["the version of the specification".to_owned()],
        Found::Pod(address) => vec![format!("the address of a pod, {address}")],
        Found::Pointers(pointers) => {
            pointers.iter().map(|pointer| format!("Service {}", pointer.service)).collect()
        }
        Found::Service(_) | Found::Ports(..) | Found::Hosts(..) => {
            let Some(at) = name.label_count().checked_sub(apex_labels + 3) else {
                return Vec::new();
            };
            let label = |place| String::from_utf8_lossy(name.label(place)).into_owned();
            let key = ObjectKey::new(&label(at + 1), &label(at));
            let mut all = vec![format!("Service {key}")];
            let headless = snapshot.services.get(&key).is_some_and(|service| service.headless);
            if headless || matches!(found, Found::Hosts(..)) {
                let slices = snapshot.slices_of(&key);
                all.extend(slices.map(|slice| format!("EndpointSlice {}", slice.key)));
            }
            all
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tried_as_pods_do() {
        let domain = Name::from_ascii("cluster.local.").unwrap();
        let corp = [Name::from_ascii("corp.example.").unwrap()];
        let tried_on = |of_node: &[Name], name: &str, namespace| -> Vec<String> {
            let names = candidates(name, namespace, (&domain, of_node)).unwrap();
            names.iter().map(ToString::to_string).collect()
        };
        let tried = |name: &str, namespace| tried_on(&[], name, namespace);
        let list = ["a.svc.cluster.local.", "svc.cluster.local.", "cluster.local."];
        let of = |name: &str| list.map(|suffix| format!("{name}.{suffix}"));
        let with = |list: [String; 3], more: &[&str]| -> Vec<String> {
            list.into_iter().chain(more.iter().map(ToString::to_string)).collect()
        };
        assert_eq!(tried("web", Some("a")), with(of("web"), &["web."]));
        assert_eq!(tried("web", None), ["web."]);
        assert_eq!(tried("web.", Some("a")), ["web."]);
        // The node's own domains are behind the cluster's.
        let corps = tried_on(&corp, "web", Some("a"));
        assert_eq!(corps, with(of("web"), &["web.corp.example.", "web."]));
        assert_eq!(tried_on(&corp, "web", None), ["web."]);
        // With as many dots as it takes the name comes first, as it is, and then the list.
        assert_eq!(tried("a.b.c.d.e", Some("a")), with(of("a.b.c.d.e"), &["a.b.c.d.e."]));
        let (dots, mut all) = ("a.b.c.d.e.f", vec!["a.b.c.d.e.f.".to_owned()]);
        all.extend(with(of(dots), &["a.b.c.d.e.f.corp.example."]));
        assert_eq!(tried_on(&corp, dots, Some("a")), all);
        assert_eq!(tried("192.0.2.1", Some("a")), ["1.2.0.192.in-addr.arpa."]);
        assert!(candidates("a..b", None, (&domain, &[])).is_err());
    }
}
