//! The way of a question through the steps of its server block: the one interpreter of
//! [`Chain`]. What no upstream has to be asked for is there at once; the rest of the way is a
//! future that somebody drives.

use std::{net::IpAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use hickory_proto::{
    op::{Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::CNAME},
};
use tokio::time::timeout;

use super::{AtOnce, LookedUp, led_to, look_up, merged, trail::Trail};
use crate::{
    dns::{
        answer::{Explanation, Reply},
        chain::{Chain, acl, autopath, dns64::Dns64, rewrite, template},
        forward::Forwarder,
        message::Question,
        metrics::{Metrics, Origin},
        zone::Zone,
    },
    local_pods::LocalPods,
};

/// How long a way may take, however many upstreams it leads to: clients give up after five
/// seconds.
const LONGEST: Duration = Duration::from_millis(4500);
/// How often a way may begin anew for a name that another one led to.
const MAX_DEPTH: usize = 8;
/// How long clients may keep an alias to what does not say it itself, in seconds.
const ALIAS_TTL: u32 = 5;

/// An answer and what gave it; `None` where the client shall get none.
pub(super) type Said = Option<(Reply, Origin)>;

/// What a way needs. It holds what was in force when it began.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) zone: Arc<Zone>,
    pub(super) forwarder: Arc<Forwarder>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) local_pods: Arc<LocalPods>,
    pub(super) client: IpAddr,
    pub(super) trail: Trail,
}

/// The steps of a server block, and its place.
#[derive(Debug)]
pub(super) struct Steps {
    pub(super) chain: Arc<Chain>,
    pub(super) block: usize,
    /// Whether the name may be the first of a search list; one further on in a list is none.
    pub(super) may_begin: bool,
}

impl Walk {
    /// The answer to `question`, whose server block has these steps.
    pub(super) async fn go(self, question: Question, steps: Steps) -> Said {
        timeout(LONGEST, self.steps(&question, &steps, 0))
            .await
            .unwrap_or_else(|_| Some(too_late()))
    }

    /// `ours`, which leads to `target`, and what that is answered, as one.
    pub(super) async fn lead(self, ours: Reply, target: Question) -> Said {
        let theirs = timeout(LONGEST, self.anew(&target, 1)).await;
        let (theirs, _) = theirs.unwrap_or_else(|_| Some(too_late())).unwrap_or_default();
        Some((merged(Some(ours), theirs), Origin::Kubernetes))
    }

    /// The answer to a question that another one led to, as if a client had asked it.
    fn anew<'a>(&'a self, question: &'a Question, depth: usize) -> BoxFuture<'a, Said> {
        self.by_its_block(question, true, depth)
    }

    /// The same, by the server block that has the name; `may_begin` as in [`Steps`].
    fn by_its_block<'a>(
        &'a self,
        question: &'a Question,
        may_begin: bool,
        depth: usize,
    ) -> BoxFuture<'a, Said> {
        Box::pin(async move {
            if depth > MAX_DEPTH {
                return Some((Reply::failure(Explanation::Loop), Origin::Nobody));
            }
            match self.forwarder.steps(question.query.name()) {
                Some((block, chain)) => {
                    self.steps(question, &Steps { chain, block, may_begin }, depth).await
                }
                None => Some(self.look_up(question, None, depth).await),
            }
        })
    }

    async fn steps(&self, question: &Question, steps: &Steps, depth: usize) -> Said {
        let said = self.admitted(question, steps, depth).await?;
        let concerned =
            |dns64: &&Dns64| dns64.concerns(question, self.client) && dns64.is_wanted(&said.0);
        let Some(dns64) = steps.chain.dns64.as_ref().filter(concerned) else { return Some(said) };
        let query = Query::query(question.query.name().clone(), RecordType::A);
        let v4 = Question { query, ..question.clone() };
        let v4 = self.anew(&v4, depth + 1).await;
        match v4.and_then(|(v4, _)| dns64.synthesized(&said.0, v4)) {
            Some(reply) => {
                self.metrics.chain.translated();
                self.trail.step("dns64", question.query.name(), || "made of A records".to_owned());
                Some((reply, Origin::Dns64))
            }
            None => Some(said),
        }
    }

    /// The answer, where the client may ask for the name as it wrote it: what it is rewritten to is
    /// the configuration's word and not the client's.
    async fn admitted(&self, question: &Question, steps: &Steps, depth: usize) -> Said {
        let access = &steps.chain.access;
        if !access.is_empty() {
            let action = acl::verdict(access, &question.query, self.client);
            self.metrics.chain.judged(action);
            self.trail.judged(question.query.name(), action);
            match action.reply() {
                Some(reply) => return Some((reply, Origin::Acl)),
                None if action == acl::Action::Drop => return None,
                None => {}
            }
        }
        self.rewritten(question, steps, depth).await
    }

    async fn rewritten(&self, question: &Question, steps: &Steps, depth: usize) -> Said {
        match rewrite::rewritten(&steps.chain.rewrites, &question.query) {
            Ok(None) => self.completed(question, steps, depth).await,
            Ok(Some(rewritten)) => {
                self.trail.rewritten(&question.query, &rewritten.query);
                let asked = Question { query: rewritten.query, ..question.clone() };
                let (mut reply, origin) = self.completed(&asked, steps, depth).await?;
                rewrite::undone(&mut reply, &rewritten.undo, question.query.name());
                Some((reply, origin))
            }
            Err(error) => {
                tracing::debug!(%error, "question not rewritten");
                self.trail.step("rewrite", question.query.name(), || error.to_string());
                Some((Reply::failure(Explanation::NoName), Origin::Nobody))
            }
        }
    }

    /// Goes through the client's search list where this is the first name of it.
    async fn completed(&self, question: &Question, steps: &Steps, depth: usize) -> Said {
        let first = self.single(question, steps, depth).await;
        if !matches!(&first, Some((reply, _)) if is_missing(reply)) {
            return first;
        }
        if !steps.may_begin {
            return first;
        }
        for name in self.path(question.query.name(), &steps.chain).unwrap_or_default() {
            let asked = led_to(question, name);
            // As if the client had asked for it, which it would next: another server block may have
            // it, with rules, a table and upstreams of its own.
            let (reply, _) = self.by_its_block(&asked, false, depth + 1).await?;
            if !is_missing(&reply) {
                return Some(self.aliased(question, asked.query.name(), reply));
            }
        }
        // Nothing has any of the names: the client hears it of the one that it asked for, and
        // goes on by itself.
        first
    }

    /// The answer to `question`, which another name of the search list has. A failure is said as
    /// one and not as "no such name": then a client's questions for other types, which may not
    /// fail, agree with it.
    fn aliased(&self, question: &Question, name: &Name, mut reply: Reply) -> (Reply, Origin) {
        let what = || format!("{name}, further on in the search list, is answered");
        self.trail.step("autopath", question.query.name(), what);
        if reply.code == ResponseCode::NoError {
            let ttl = reply.answers.first().or(reply.authorities.first());
            let ttl = ttl.map_or(ALIAS_TTL, |record| record.ttl);
            let alias = RData::CNAME(CNAME(name.clone()));
            let alias = Record::from_rdata(question.query.name().clone(), ttl, alias);
            reply.answers.insert(0, alias);
            reply.authentic = false;
            self.metrics.chain.completed();
        }
        (reply, Origin::Autopath)
    }

    /// The names that the client would ask for next, one after the other.
    fn path(&self, name: &Name, chain: &Chain) -> Option<Vec<Name>> {
        let autopath = chain.autopath.as_ref()?;
        if !autopath.zones.iter().any(|zone| zone.zone_of(name)) {
            return None;
        }
        let namespace = match &autopath.search {
            // Only a pod of this node, by the address that it was given.
            autopath::Search::Pods(_) => Some(self.local_pods.namespace_of(self.client)?),
            autopath::Search::List(_) => None,
        };
        let domain = &self.zone.settings().origin;
        autopath::path(name, &autopath.search.of(namespace.as_deref(), domain))
    }

    /// The answer to a question that is asked as it is.
    async fn single(&self, question: &Question, steps: &Steps, depth: usize) -> Said {
        let (mut reply, origin) = self.found(question, steps, depth).await;
        if steps.chain.minimal {
            reply.minimize();
        }
        Some((reply, origin))
    }

    async fn found(&self, question: &Question, steps: &Steps, depth: usize) -> (Reply, Origin) {
        if let Some(reply) = template::answer(&steps.chain.templates, &question.query, self.client)
        {
            let name = question.query.name();
            self.trail.step("template", name, || "the answer is written".to_owned());
            return (self.followed(question, reply, depth).await, Origin::Template);
        }
        self.look_up(question, Some(steps.block), depth).await
    }

    /// The answer of a template, with what its alias leads to.
    async fn followed(&self, question: &Question, reply: Reply, depth: usize) -> Reply {
        let kind = question.query.query_type();
        let target = reply.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) => Some(target.0.clone()),
            _ => None,
        });
        let Some(target) = target.filter(|_| [RecordType::A, RecordType::AAAA].contains(&kind))
        else {
            return reply;
        };
        match self.anew(&led_to(question, target), depth + 1).await {
            Some((theirs, _)) if theirs.code == ResponseCode::NoError => {
                let mut reply = reply;
                reply.truncated |= theirs.truncated;
                reply.answers.extend(theirs.answers);
                reply
            }
            _ => reply,
        }
    }

    /// What the tables, the index, the cache or upstreams have.
    async fn look_up(
        &self,
        question: &Question,
        block: Option<usize>,
        depth: usize,
    ) -> (Reply, Origin) {
        self.trail.look_up(&self.forwarder, question, block);
        match look_up(&self.zone, &self.forwarder, question, block) {
            LookedUp::Answer(reply, origin) => (reply, origin),
            LookedUp::Alias(ours, target) => {
                let theirs = self.anew(&target, depth + 1).await;
                let (theirs, _) = theirs.unwrap_or_default();
                (merged(Some(ours), theirs), Origin::Kubernetes)
            }
            LookedUp::Foreign => match self.forwarder.at_once(question, block) {
                AtOnce::Answer(reply, origin) => (reply, origin),
                AtOnce::Ask(errand) => {
                    let (reply, by) = self.forwarder.ask(question, errand).await;
                    self.trail.answered_by(question, by);
                    (reply, Origin::Forward)
                }
            },
        }
    }
}

/// What is said where a way takes longer than clients wait.
fn too_late() -> (Reply, Origin) {
    (Reply::failure(Explanation::NoReachableAuthority), Origin::Forward)
}

fn is_missing(reply: &Reply) -> bool {
    reply.code == ResponseCode::NXDomain
}
