//! One question to the upstreams of a route: to one after the other, each for a while alone. One
//! that is slow is passed over and still waited for while the next is asked: the first good answer
//! is taken, whoever gives it.

use std::{
    net::SocketAddr,
    ops::ControlFlow,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::timeout_at;

use super::{
    Answer, Forwarder,
    exchange::{self, ExchangeError, Received},
    lock,
};
use crate::dns::{
    answer::Explanation,
    cache::{Asked, is_failure},
    message::Question,
    name::LowerName,
    route::Route,
};

/// An answer that is not kept yet, and whose it is.
type Said = (Received, SocketAddr);

/// How good an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// It says nothing of the name.
    Failure,
    /// The configuration has another one be asked after it.
    Denial,
    /// Some of it was left out, and could not be had.
    Part,
    /// It is the answer.
    Whole,
}

/// What a try came to.
struct Outcome {
    /// The upstream's place.
    upstream: usize,
    /// Its address.
    by: SocketAddr,
    /// What it said, and how long that took.
    said: Result<(Received, Duration), ExchangeError>,
}

/// What is known while tries are under way.
struct Tries<'a> {
    forwarder: &'a Forwarder,
    route: &'a Route,
    asked: Asked<'a>,
    /// Who was asked last, as long as that is not for too long.
    newest: Option<usize>,
    /// Whether each that was asked is said not to be there.
    unreachable: bool,
    /// The best answer so far: of one that refused, of which another one may know better, or a part.
    best: Option<Said>,
}

impl Forwarder {
    /// Asks the upstreams of the route at `place`, and where it says so of the answer those of the
    /// next one. What is said at last is kept as the answer of that at `place`.
    pub(super) async fn ask_routes(
        &self,
        question: &Question,
        place: usize,
        deadline: Instant,
    ) -> Answer {
        let name = LowerName::of(question.query.name());
        let mut gone = vec![place];
        let mut at = place;
        let (received, by) = loop {
            let (received, by) = self.ask_upstreams(question, at, deadline).await?;
            match self.routes.next(&gone, &name, received.message.metadata.response_code) {
                Some(next) => at = next,
                None => break (received, by),
            }
            gone.push(at);
        };
        let (route, _) = self.at(place).ok_or(Explanation::NoUpstream)?;
        Ok(self.remember(Asked { question, place }, received, by, &route.keeping))
    }

    /// Tries one upstream after the other until one answers or the time is up.
    async fn ask_upstreams(
        &self,
        question: &Question,
        place: usize,
        deadline: Instant,
    ) -> Result<Said, Explanation> {
        let (route, health) = self.at(place).ok_or(Explanation::NoUpstream)?;
        let order = {
            let mut health = lock(health);
            if health.all_failing() {
                self.metrics.general.all_failing();
            }
            health.order(Instant::now(), self.next_turn(route.policy))
        };
        if order.is_empty() {
            return Err(Explanation::Loop);
        }
        // With a single upstream a lost datagram still gets its second and third chance.
        let (round, tries) = (order.len(), (2 * order.len()).max(4));
        let mut order = order.into_iter().cycle().take(tries).enumerate();
        let asked = Asked { question, place };
        let mut tries =
            Tries { forwarder: self, route, asked, newest: None, unreachable: true, best: None };
        let (mut under_way, mut patience) = (FuturesUnordered::new(), deadline);
        loop {
            if tries.newest.is_none() {
                // Once all were asked, one that refused or said a part is the best there is.
                let alone = tries.best.is_none();
                match order.next().filter(|(attempt, _)| alone || *attempt < round) {
                    Some((_, upstream)) => {
                        let Some(by) = route.upstreams.get(upstream) else { continue };
                        under_way.push(self.try_one(asked, upstream, by.address));
                        tries.newest = Some(upstream);
                        patience = Instant::now() + self.limits.attempt;
                    }
                    None if !alone || under_way.is_empty() => break,
                    None => patience = deadline,
                }
            }
            match timeout_at(deadline.min(patience).into(), under_way.next()).await {
                Ok(Some(outcome)) => {
                    if let ControlFlow::Break(said) = tries.note(outcome) {
                        return Ok(said);
                    }
                }
                Ok(None) => tries.newest = None,
                Err(_) => {
                    let late = tries.newest.and_then(|place| route.upstreams.get(place));
                    let late = late.map(|upstream| upstream.address);
                    tracing::debug!(upstream = ?late, "upstream gave no answer yet");
                    tries.unreachable = false;
                    tries.passed_over();
                }
            }
            if Instant::now() >= deadline {
                tries.passed_over();
                break;
            }
        }
        tries.best.ok_or(if tries.unreachable {
            Explanation::Unreachable
        } else {
            Explanation::NoReachableAuthority
        })
    }

    /// Asks one upstream, which takes as long as it takes.
    async fn try_one(&self, asked: Asked<'_>, upstream: usize, by: SocketAddr) -> Outcome {
        let since = Instant::now();
        let passed_over = &self.metrics.general.passed_over;
        let said = match self.way(asked.place, upstream) {
            Some(way) => exchange::ask(way, asked.question, passed_over).await,
            None => Err(ExchangeError::Closed),
        };
        Outcome { upstream, by, said: said.map(|received| (received, since.elapsed())) }
    }
}

impl Tries<'_> {
    /// Takes note of what a try came to; a good answer ends them all.
    fn note(&mut self, Outcome { upstream, by, said }: Outcome) -> ControlFlow<Said> {
        let (received, elapsed) = match said {
            Ok(said) => said,
            Err(error) => {
                tracing::debug!(upstream = %by, %error, "upstream gave no answer");
                self.unreachable &= error.is_of_network();
                // One that was passed over was noted then.
                if self.newest == Some(upstream) {
                    self.passed_over();
                }
                return ControlFlow::Continue(());
            }
        };
        if let Some((health, counts)) = self.forwarder.books(self.asked.place, upstream) {
            lock(health).answered(upstream);
            counts.answered(received.message.metadata.response_code, elapsed);
        }
        let worth = self.worth(&received);
        if worth == Worth::Whole {
            return ControlFlow::Break((received, by));
        }
        // Another one may know better; if none does, this is the answer: of equals the first.
        if self.best.as_ref().is_none_or(|(before, _)| self.worth(before) < worth) {
            self.best = Some((received, by));
        }
        self.newest.take_if(|newest| *newest == upstream);
        ControlFlow::Continue(())
    }

    fn worth(&self, received: &Received) -> Worth {
        let said = &received.message.metadata;
        match said.response_code {
            code if is_failure(code) => Worth::Failure,
            code if self.route.fails_over(code) => Worth::Denial,
            _ if said.truncation => Worth::Part,
            _ => Worth::Whole,
        }
    }

    /// Who was asked last gave no answer, or takes too long.
    fn passed_over(&mut self) {
        let Some(upstream) = self.newest.take() else { return };
        if let Some((health, counts)) = self.forwarder.books(self.asked.place, upstream) {
            lock(health).failed(upstream, Instant::now());
            counts.failed();
        }
        self.forwarder.probes.suspect();
    }
}

#[cfg(test)]
mod tests;
