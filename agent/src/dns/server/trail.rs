//! What a question meets on its way, noted as it goes, for who explains the answer. Nobody else
//! has anything noted.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use hickory_proto::{op::Query, rr::Name};

use crate::dns::{
    chain::acl::Action,
    forward::{Forwarder, knows::Knows},
    message::Question,
};

/// What was met; clones are the same. By default nothing is noted.
#[derive(Clone, Debug, Default)]
pub struct Trail(Option<Arc<Mutex<Vec<Met>>>>);

/// What a question met.
#[derive(Clone, Debug)]
pub enum Met {
    /// A step of the server block that did something.
    Step {
        /// Its directive.
        step: &'static str,
        /// The name that was asked for there.
        name: Name,
        /// What it did.
        what: String,
    },
    /// Tables of hosts, the index, the cache and upstreams, in this order.
    LookUp {
        /// What was looked for.
        question: Box<Question>,
        /// Whether a table of hosts has it.
        in_hosts: bool,
        /// What was known beside the index, before anybody was asked.
        known: Knows,
        /// Whether upstreams were asked, and which of them answered, if any.
        asked: Option<Option<SocketAddr>>,
    },
}

impl Trail {
    /// One on which is noted.
    pub fn noted() -> Self {
        Self(Some(Arc::default()))
    }

    /// What was met until now.
    pub fn met(&self) -> Vec<Met> {
        let all = self.0.as_ref();
        all.map(|all| all.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .unwrap_or_default()
    }

    fn note(&self, met: impl FnOnce() -> Met) {
        if let Some(all) = &self.0 {
            let met = met();
            all.lock().unwrap_or_else(PoisonError::into_inner).push(met);
        }
    }

    /// `what` a step did to a question for `name`.
    pub(super) fn step(&self, step: &'static str, name: &Name, what: impl FnOnce() -> String) {
        self.note(|| Met::Step { step, name: name.clone(), what: what() });
    }

    /// A question was rewritten.
    pub(super) fn rewritten(&self, from: &Query, to: &Query) {
        self.step("rewrite", from.name(), || {
            if from == to {
                return "the answer is changed".to_owned();
            }
            format!("{} {} is asked in its place", to.name(), to.query_type())
        });
    }

    /// A question was judged.
    pub(super) fn judged(&self, name: &Name, action: Action) {
        let what = match action {
            Action::Allow => return,
            Action::Block => "refused",
            Action::Filter => "the answer is that there is nothing",
            Action::Drop => "no answer is given",
        };
        self.step("acl", name, || what.to_owned());
    }

    /// A question is looked up; `block` as in [`Forwarder::at_once`].
    pub(super) fn look_up(&self, by: &Forwarder, question: &Question, block: Option<usize>) {
        self.note(|| Met::LookUp {
            question: Box::new(question.clone()),
            in_hosts: by.in_hosts(question, block).is_some(),
            known: by.knows(question, block),
            asked: None,
        });
    }

    /// Upstreams were asked what was looked up, and this one answered, if any.
    pub(super) fn answered_by(&self, question: &Question, upstream: Option<SocketAddr>) {
        let Some(all) = &self.0 else { return };
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        let looked_up = all.iter_mut().rev().find_map(|met| match met {
            Met::LookUp { question: asked_for, asked, .. } if asked_for.query == question.query => {
                Some(asked)
            }
            _ => None,
        });
        if let Some(asked) = looked_up {
            *asked = Some(upstream);
        }
    }
}
