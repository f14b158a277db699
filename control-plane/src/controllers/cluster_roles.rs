//! Cluster roles that are made of others have the rules of these.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::ClusterRole;

use super::engine::{Controller, Failure, LookError};
use super::key::Key;
use super::queue::Queue;
use super::world::World;
use super::write::{Outcome, Write};
use crate::authz::aggregation;

/// The controller of aggregated cluster roles.
pub(crate) struct ClusterRoles {
    world: Arc<World>,
}

impl ClusterRoles {
    /// A controller that reads from `world`.
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    /// Has all aggregated roles looked at when any role changes: there are few, and which role is
    /// a part of which only a look tells.
    pub(crate) fn subscribe(world: &mut World, queue: &Arc<Queue<Key>>) {
        let queue = Arc::clone(queue);
        world.subscribe::<ClusterRole>(move |world, _| {
            let roles = world.cache::<ClusterRole>().all();
            let aggregated = roles.iter().filter(|role| role.aggregation_rule.is_some());
            queue.add_all(aggregated.map(|role| Key::of(&**role)));
        });
    }
}

impl Controller for ClusterRoles {
    type Key = Key;
    const NAME: &'static str = "clusterrole-aggregation";

    async fn look(&self, key: &Key, _: Option<&Failure>) -> Result<Outcome, LookError> {
        let Some(role) = self.world.get::<ClusterRole>(key) else { return Ok(Outcome::default()) };
        let all = self.world.cache::<ClusterRole>().all();
        let wanted = aggregation::rules(&role, &all.iter().map(|role| &**role));
        let Some(wanted) = wanted.filter(|wanted| role.rules.as_ref() != Some(wanted)) else {
            return Ok(Outcome::default());
        };
        let role = ClusterRole { rules: Some(wanted), ..(*role).clone() };
        Ok(vec![Write::Replace(role.into())].into())
    }
}
