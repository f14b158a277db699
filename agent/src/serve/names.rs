//! `/v1/dns`: how this node's resolver answers a name, and why.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use hickory_proto::rr::{Name, RecordType};
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::http::{Answer, Asked};
use crate::{
    dns::{
        explain::{self, Explained},
        resolv_conf,
        server::Resolver,
    },
    model::{ObjectKey, snapshot::Snapshot},
    podnet,
};

/// Where the node's own search list is.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What explains names.
#[derive(Debug)]
pub struct Names {
    /// Name of the node.
    pub node: String,
    /// Where the pods of the node are noted.
    pub state_dir: PathBuf,
    /// The cluster domain.
    pub domain: String,
    /// The resolver, as soon as it is there.
    pub resolver: Arc<OnceLock<Arc<Resolver>>>,
    /// The cluster.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// The questions that a client puts for a name until one finds something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answers {
    /// Name of the node whose resolver it is.
    pub node: String,
    /// The pod that asks; empty where none was named.
    pub from: String,
    /// The questions, in order.
    pub questions: Vec<Explained>,
}

impl Names {
    /// `/v1/dns?name=NAME&type=A&from=NAMESPACE/POD`.
    pub(super) async fn dns(&self, asked: &Asked) -> Answer {
        match self.explain(asked).await {
            Ok(answers) => Answer::json(&answers),
            Err((status, why)) => Answer::text(why).with(status),
        }
    }

    async fn explain(&self, asked: &Asked) -> Result<Answers, (StatusCode, String)> {
        let bad = |why: String| (StatusCode::BAD_REQUEST, why);
        let name = asked.parameter("name").ok_or_else(|| bad("no name is given".to_owned()))?;
        let kind = match asked.parameter("type") {
            Some(kind) => kind.to_uppercase().parse::<RecordType>().map_err(|_| {
                bad(format!("{kind:?} is no type of record such as A, AAAA, SRV, PTR or TXT"))
            })?,
            None if name.parse::<IpAddr>().is_ok() => RecordType::PTR,
            None => RecordType::A,
        };
        let (from, client) =
            self.client(asked.parameter("from")).map_err(|why| (StatusCode::NOT_FOUND, why))?;
        let mut domain = Name::from_ascii(&self.domain).map_err(|error| bad(error.to_string()))?;
        domain.set_fqdn(true);
        let namespace = from.as_ref().map(|pod| &*pod.namespace);
        // As the kubelet writes pods' lists: the node's own domains behind the cluster's.
        let resolv_conf = tokio::fs::read_to_string(RESOLV_CONF).await.unwrap_or_default();
        let of_node = resolv_conf::search_list(&resolv_conf);
        let names = explain::candidates(&name, namespace, (&domain, &of_node)).map_err(bad)?;
        let resolver = self.resolver.get().ok_or_else(|| {
            (StatusCode::SERVICE_UNAVAILABLE, "the resolver has not started yet".to_owned())
        })?;
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let mut questions = Vec::new();
        for name in &names {
            let explained = explain::explain(resolver, &snapshot, (name, kind), client).await;
            let explained = explained.map_err(bad)?;
            let found = explained.found();
            questions.push(explained);
            if found {
                break;
            }
        }
        let from = from.map(|pod| pod.to_string()).unwrap_or_default();
        Ok(Answers { node: self.node.clone(), from, questions })
    }

    /// Who asks: a pod of this node, or one that a slice names; else the node.
    fn client(&self, from: Option<String>) -> Result<(Option<ObjectKey>, IpAddr), String> {
        let node = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let Some(text) = from else { return Ok((None, node)) };
        let (namespace, name) = text.split_once('/').unwrap_or(("default", &text));
        let pod = ObjectKey::new(namespace, name);
        let snapshot = self.snapshots.borrow();
        let here = podnet::pods_in(&self.state_dir).remove(&pod).unwrap_or_default();
        let address = here.first().copied().or_else(|| snapshot.addresses_of(&pod).next());
        let address = address.ok_or_else(|| {
            format!("{pod} is no pod of this node, and no Service of its namespace has it")
        })?;
        Ok((Some(pod), address))
    }
}
