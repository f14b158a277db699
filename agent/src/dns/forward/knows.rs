//! What is known of a name before anybody is asked: for explanations, which change nothing.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{Forwarder, lock};
use crate::dns::{cache::Asked, message::Question, name::LowerName, route::Upstream};

/// What is known of a foreign name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Knows {
    /// The zone whose route has it; none where no route does.
    pub zone: Option<String>,
    /// Who may be asked, in the order of the configuration.
    pub upstreams: Vec<Upstream>,
    /// What is remembered.
    pub kept: Option<Kept>,
}

/// An answer that is remembered, or that there was none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// For how long it has been here.
    pub age: Duration,
    /// For how long it is still good; zero where it has outlived its time.
    pub left: Duration,
    /// Whether it is the failure to get one.
    pub failure: bool,
    /// Whose answer it is; nobody's where nobody answered.
    pub by: Option<SocketAddr>,
}

impl Forwarder {
    /// What is known of the question's name, at this moment; `block` as in
    /// [`at_once`](Self::at_once).
    pub fn knows(&self, question: &Question, block: Option<usize>) -> Knows {
        let name = LowerName::of(question.query.name());
        let Some((place, route)) = self.route(&name, block) else { return Knows::default() };
        let asks = self.routes.asks_for(place, &name);
        let zone = Some(route.zone.to_string());
        if !asks {
            return Knows { zone, ..Knows::default() };
        }
        let kept = lock(&self.cache).peek(Asked { question, place }, Instant::now());
        Knows { zone, upstreams: route.upstreams.clone(), kept }
    }
}
