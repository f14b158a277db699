//! Keeps the rules and the graph of pods up to date with the store, and decides by them.
//!
//! Tasks follow the store's topics and take changes in as they come. Two things do not wait for
//! them: a refusal, and the answer to a write of rules; both first take in what the store has.
//! So nobody is refused for rules that were made before they asked, and nobody is told that rules
//! are gone that still hold.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::node::Graph;
use super::rbac::Rules;
use super::{Attributes, Decision, User};
use crate::store::{Entry, Event, Query, Revision, Store, StoreError, Watch};

/// What is followed.
#[derive(Clone, Copy, Debug)]
enum Topic {
    Roles,
    RoleBindings,
    ClusterRoles,
    ClusterRoleBindings,
    Pods,
}

/// The topics and the prefixes of their keys.
const TOPICS: [(Topic, &str); 5] = [
    (Topic::ClusterRoles, "rbac.authorization.k8s.io/clusterroles/"),
    (Topic::ClusterRoleBindings, "rbac.authorization.k8s.io/clusterrolebindings/"),
    (Topic::Roles, "rbac.authorization.k8s.io/roles/"),
    (Topic::RoleBindings, "rbac.authorization.k8s.io/rolebindings/"),
    (Topic::Pods, "core/pods/"),
];

#[derive(Default)]
struct State {
    rules: Rules,
    graph: Graph,
}

type Cursors = Vec<(Topic, Box<dyn Watch>)>;

/// Decides by the newest rules.
pub struct Authorizer {
    store: Arc<dyn Store>,
    state: RwLock<State>,
    /// Held while changes are taken in, so that they are taken in in order.
    cursors: Mutex<Cursors>,
}

impl Authorizer {
    /// Reads what the store has.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let (state, cursors) = load(&*store).await?;
        Ok(Self { store, state: RwLock::new(state), cursors: Mutex::new(cursors) })
    }

    /// Decides about a request. A refusal rests on everything that the store has committed.
    pub fn decide(&self, user: &User, asked: &Attributes<'_>) -> Decision {
        let look = || self.read(|rules, graph| super::decide(user, asked, rules, graph));
        let decision = look();
        if decision.is_allowed() {
            return decision;
        }
        if let Err(error) = self.catch_up() {
            tracing::debug!(%error, "refused by rules that may be behind the store");
        }
        // Even where there was nothing left to take in: a follower may have done so since.
        look()
    }

    /// Looks at the rules and the graph.
    pub fn read<T>(&self, look: impl FnOnce(&Rules, &Graph) -> T) -> T {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        look(&state.rules, &state.graph)
    }

    /// Takes in what was committed since.
    pub fn catch_up(&self) -> Result<(), StoreError> {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = Vec::new();
        for (topic, cursor) in cursors.iter_mut() {
            let events = cursor.take()?.events;
            changes.extend(events.iter().filter(|event| matters(*topic, event)).map(|event| {
                let value = event.entry.as_ref();
                Change::read(*topic, &event.key, value)
            }));
        }
        if changes.is_empty() {
            return Ok(());
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        changes.into_iter().flatten().for_each(|change| state.take(change));
        Ok(())
    }

    /// Starts the tasks that follow the store until `shutdown`.
    pub fn follow(self: &Arc<Self>, tasks: &TaskTracker, shutdown: &CancellationToken) {
        for (_, prefix) in TOPICS {
            let (authorizer, shutdown) = (Arc::clone(self), shutdown.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    Err(error) = authorizer.follow_topic(prefix) => {
                        tracing::error!(prefix, %error, "authorization rules are followed no more");
                    }
                }
            });
        }
    }

    async fn follow_topic(&self, prefix: &str) -> Result<(), StoreError> {
        loop {
            let now = self.store.revision().await?;
            let mut bell = self.store.watch(prefix, now).await?;
            loop {
                bell.changed().await?;
                // Only heard, not read; one that has fallen behind is made anew.
                let heard = bell.take().map(drop);
                match heard.and_then(|()| self.catch_up()) {
                    Ok(()) => {}
                    Err(StoreError::Compacted { .. }) => break,
                    Err(error) => return Err(error),
                }
            }
            self.reload().await?;
        }
    }

    /// Reads everything anew.
    async fn reload(&self) -> Result<(), StoreError> {
        let (state, cursors) = load(&*self.store).await?;
        let mut held = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        *held = cursors;
        Ok(())
    }
}

/// The state at a revision, and cursors that stand after it.
async fn load(store: &dyn Store) -> Result<(State, Cursors), StoreError> {
    let (mut state, mut cursors) = (State::default(), Cursors::new());
    let mut at: Option<Revision> = None;
    for (topic, prefix) in TOPICS {
        let page = store.range(Query { prefix, after: None, limit: None, at }).await?;
        at = Some(page.revision);
        for (key, entry) in page.entries {
            if let Some(change) = Change::read(topic, &key, Some(&entry)) {
                state.take(change);
            }
        }
        cursors.push((topic, store.watch(prefix, page.revision).await?));
    }
    Ok((state, cursors))
}

/// Most changes of pods are of their status, which matters to nobody here.
fn matters(topic: Topic, event: &Event) -> bool {
    let (Topic::Pods, Some(now), Some(before)) = (topic, &event.entry, &event.previous) else {
        return true;
    };
    match (spec(&now.value), spec(&before.value)) {
        (Some(now), Some(before)) => now != before,
        _ => true,
    }
}

/// The part of a stored object from its spec to its status. Quotes in texts are escaped, so what
/// is found is the name of a field.
fn spec(value: &[u8]) -> Option<&[u8]> {
    const SPEC: &[u8] = b",\"spec\":";
    const STATUS: &[u8] = b",\"status\":";
    let from = value.windows(SPEC.len()).position(|window| window == SPEC)?;
    let to = value.windows(STATUS.len()).rposition(|window| window == STATUS)?;
    value.get(from..to)
}

/// A change, read.
enum Change {
    PutClusterRole(k8s_openapi::api::rbac::v1::ClusterRole),
    PutClusterBinding(k8s_openapi::api::rbac::v1::ClusterRoleBinding),
    PutRole(k8s_openapi::api::rbac::v1::Role),
    PutBinding(k8s_openapi::api::rbac::v1::RoleBinding),
    PutPod(String, String, Entry),
    Remove(Topic, String, String),
}

impl Change {
    /// Reads what became of a key; `None` where that makes no sense.
    fn read(topic: Topic, key: &str, entry: Option<&Entry>) -> Option<Self> {
        let rest = TOPICS.iter().find_map(|(_, prefix)| key.strip_prefix(prefix))?;
        let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let Some(entry) = entry else { return Some(Self::Remove(topic, namespace, name)) };
        match topic {
            Topic::ClusterRoles => parse(key, entry).map(Self::PutClusterRole),
            Topic::ClusterRoleBindings => parse(key, entry).map(Self::PutClusterBinding),
            Topic::Roles => parse(key, entry).map(Self::PutRole),
            Topic::RoleBindings => parse(key, entry).map(Self::PutBinding),
            Topic::Pods => Some(Self::PutPod(namespace, name, entry.clone())),
        }
        // Rules that nobody can read must not hold any longer.
        .or_else(|| Self::read(topic, key, None))
    }
}

fn parse<T: DeserializeOwned>(key: &str, entry: &Entry) -> Option<T> {
    let parsed = serde_json::from_slice(&entry.value);
    parsed.inspect_err(|error| tracing::warn!(key, %error, "stored rules can't be read")).ok()
}

impl State {
    fn take(&mut self, change: Change) {
        let Self { rules, graph } = self;
        match change {
            Change::PutClusterRole(role) => rules.put_cluster_role(role),
            Change::PutClusterBinding(binding) => rules.put_cluster_binding(binding),
            Change::PutRole(role) => rules.put_role(role),
            Change::PutBinding(binding) => rules.put_binding(binding),
            Change::PutPod(namespace, name, entry) => graph.put(&namespace, &name, &entry.value),
            Change::Remove(topic, namespace, name) => match topic {
                Topic::ClusterRoles => rules.remove_cluster_role(&name),
                Topic::ClusterRoleBindings => rules.remove_cluster_binding(&name),
                Topic::Roles => rules.remove_role(&namespace, &name),
                Topic::RoleBindings => rules.remove_binding(&namespace, &name),
                Topic::Pods => graph.remove(&namespace, &name),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::{Action, Embedded, Expect, Op, Options};

    fn put(key: String, value: &serde_json::Value) -> Op {
        let action = Action::Put(value.to_string().into());
        Op { key: key.into(), expect: Expect::Any, action }
    }

    /// A user's binding to a role, and a hundred others that take their time to be read.
    fn rules(user: &str) -> Vec<Op> {
        let group = "rbac.authorization.k8s.io";
        let role = json!({
            "metadata": {"name": user},
            "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}],
        });
        let binding = json!({
            "metadata": {"name": user},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": user},
            "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
        });
        let mut ops: Vec<Op> = (0..100)
            .map(|number| put(format!("{group}/clusterroles/{user}-{number}"), &role))
            .collect();
        ops.push(put(format!("{group}/clusterroles/{user}"), &role));
        ops.push(put(format!("{group}/clusterrolebindings/{user}"), &binding));
        ops
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_is_refused_while_a_follower_takes_their_rights_in() {
        let store: Arc<dyn Store> = Arc::new(Embedded::in_memory(&Options::default()));
        let authorizer = Arc::new(Authorizer::open(Arc::clone(&store)).await.unwrap());
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        authorizer.follow(&tasks, &shutdown);
        let asked = Attributes {
            verb: "list",
            version: "v1",
            resource: "configmaps",
            ..Attributes::default()
        };
        for number in 0..200 {
            let user = format!("user-{number}");
            store.commit(rules(&user)).await.unwrap();
            let decision = authorizer.decide(&User::new(&user, &[]), &asked);
            assert!(decision.is_allowed(), "{user}: {:?}", decision.why());
        }
        shutdown.cancel();
    }
}
