//! Goes the way: looks, does what comes next, looks again. The only one here that writes.

use std::time::{Duration, Instant};

use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Node};
use kube::{
    Api, Client, Resource as _,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    BEFORE, LABEL, NAMES_ANSWER, NAMES_ASKED, REPORT, Report, WAY, affinity, core_dns,
    direction::{Direction, Run, Stand},
    look::{LookError, Proxy, Seen},
    plan::{Next, Step, Wait, Way, next},
};
use crate::{
    kube::client::{limited, may_pass},
    migrate::plan::Obstacle,
    model::node::KubeProxy,
};

/// How often it is looked while something is waited for: at what that is about alone.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is looked at all of it meanwhile.
const LOOK_AT_ALL: Duration = Duration::from_secs(30);
/// Writes in a row that fail because somebody else wrote in between.
const CONFLICTS_MAX: usize = 10;

/// Why it ended on the way. What was done stays, and a further run goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum CarryOutError {
    /// It can't be looked at.
    #[error(transparent)]
    Look(#[from] LookError),
    /// The API server refuses a write.
    #[error("{step}; what was done before stays, and running it again goes on from there")]
    Write {
        /// What was to be done.
        step: String,
        /// Why it was not.
        #[source]
        source: Box<kube::Error>,
    },
    /// What was kept of the DaemonSet is not what was written.
    #[error(
        "put kube-proxy's DaemonSet {daemon_set} back: its annotation {BEFORE} is no JSON; set \
         spec.template.spec.affinity as it should be, and remove the annotation"
    )]
    Kept {
        /// Namespace and name.
        daemon_set: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// What happens on the way.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// It was looked.
    Looked(&'a Seen),
    /// A step was done.
    Did(&'a Step),
    /// Something is waited for.
    Waits(&'a Wait),
}

/// What is known, and when all of it was looked at.
#[derive(Default)]
struct Known {
    seen: Option<(Seen, Instant)>,
    /// Whether CoreDNS's Deployments are looked at.
    with_core_dns: bool,
}

impl Known {
    /// Looks: while something is waited for, mostly at that.
    async fn look(&mut self, client: &Client, waited: Option<&Wait>) -> Result<&Seen, LookError> {
        let before = self.seen.take().filter(|(_, at)| at.elapsed() < LOOK_AT_ALL);
        if let (Some((mut seen, at)), Some(wait)) = (before, waited)
            && seen.refresh(client, &wait.node).await?
        {
            return Ok(&self.seen.insert((seen, at)).0);
        }
        let seen = Seen::now(client, self.with_core_dns).await?;
        Ok(&self.seen.insert((seen, Instant::now())).0)
    }
}

/// How long it has been so, for what is waited for and for a server that does not answer.
#[derive(Default)]
struct Patience {
    waits: Option<(Wait, Instant)>,
    fails: Option<Instant>,
}

impl Patience {
    /// How long this has been waited for, whatever is said of it.
    fn waits(&mut self, wait: &Wait) -> Duration {
        let since = match self.waits.take() {
            Some((before, since)) if before.is_same(wait) => since,
            _ => Instant::now(),
        };
        self.waits = Some((wait.clone(), since));
        since.elapsed()
    }

    /// How long the server has failed.
    fn fails(&mut self) -> Duration {
        self.fails.get_or_insert_with(Instant::now).elapsed()
    }
}

/// What a look led to.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
enum Turn {
    /// A step was done; whether it brings the cluster further, and is no question that is put again
    /// and again while something is waited for.
    Did { is_progress: bool },
    /// This was seen, and there is no step to be done now.
    Rests(Seen, Next),
}

/// Looks, and does what comes next.
async fn turn(
    client: &Client,
    run: &mut Run,
    only: &[String],
    known: &mut Known,
    waited: Option<&Wait>,
    tell: &mut impl FnMut(Event<'_>),
) -> Result<Turn, CarryOutError> {
    let seen = known.look(client, waited).await?;
    tell(Event::Looked(seen));
    let next = next(seen, run.way(), only);
    if let Some(obstacle) = lead(client, run, seen, &next).await? {
        return Ok(Turn::Rests(seen.clone(), Next::Obstructed(vec![obstacle])));
    }
    match next {
        Next::Do(step) => {
            carry_out(client, seen, &step).await?;
            tell(Event::Did(&step));
            Ok(Turn::Did { is_progress: !matches!(step, Step::AskNames { .. }) })
        }
        other => Ok(Turn::Rests(seen.clone(), other)),
    }
}

/// Has a run lead the cluster, where it has a part of the way before it; what is in the way of that.
async fn lead(
    client: &Client,
    run: &mut Run,
    seen: &Seen,
    next: &Next,
) -> Result<Option<Obstacle>, CarryOutError> {
    let (Next::Do(_) | Next::Wait(_), Some(proxy)) = (next, seen.proxy()) else { return Ok(None) };
    let obstacle = match run.stand(proxy.direction.as_ref(), seen.now_s) {
        Stand::Holds => None,
        Stand::Contested(obstacle) => Some(obstacle),
        Stand::Claims => claim(client, run, proxy, seen.now_s).await?,
    };
    if obstacle.is_none() {
        run.leads(seen.now_s);
    }
    Ok(obstacle)
}

/// Says at kube-proxy's DaemonSet that a run leads the cluster, unless another one said so since it was
/// looked at.
async fn claim(
    client: &Client,
    run: &Run,
    proxy: &Proxy,
    now_s: u64,
) -> Result<Option<Obstacle>, CarryOutError> {
    let told = |source| CarryOutError::Write {
        step: format!(
            "say at kube-proxy's DaemonSet {}/{} which way the cluster is led (annotation {WAY})",
            proxy.namespace, proxy.name
        ),
        source: Box::new(source),
    };
    let sets = daemon_sets(client, proxy);
    let mut set = sets.get(&proxy.name).await.map_err(told)?;
    match run.stand(Direction::of(&set.metadata).as_ref(), now_s) {
        Stand::Holds => return Ok(None),
        Stand::Contested(obstacle) => return Ok(Some(obstacle)),
        Stand::Claims => {}
    }
    let written = run.direction(now_s).write(&mut set.metadata);
    written.map_err(|error| told(kube::Error::SerdeError(error)))?;
    sets.replace(&proxy.name, &PostParams::default(), &set).await.map_err(told)?;
    Ok(None)
}

/// Says that no run leads the cluster this way any more: also of one that was killed before, for another
/// that still runs says so again. Where that can't be said, it is so by itself after a while.
pub async fn release(client: &Client, proxy: &Proxy, way: Way) {
    let sets = daemon_sets(client, proxy);
    for _ in 0..CONFLICTS_MAX {
        let Ok(mut set) = limited(sets.get(&proxy.name)).await else { return };
        if Direction::of(&set.metadata).is_none_or(|said| said.way != way) {
            return;
        }
        Direction::erase(&mut set.metadata);
        match limited(sets.replace(&proxy.name, &PostParams::default(), &set)).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            _ => return,
        }
    }
}

/// Has a run go its way to the end, or until something is in the way or did not come within `patience`;
/// what was seen last, and what would be next. A server that fails is asked again for as long. CoreDNS
/// goes or comes back with it where that is asked for.
pub async fn go(
    client: &Client,
    run: &mut Run,
    only: &[String],
    with_core_dns: bool,
    patience: Duration,
    mut tell: impl FnMut(Event<'_>),
) -> Result<(Seen, Next), CarryOutError> {
    let mut conflicts = 0;
    let mut known = Known { with_core_dns, ..Known::default() };
    let mut so_far = Patience::default();
    loop {
        let waited = so_far.waits.as_ref().map(|(wait, _)| wait);
        match turn(client, run, only, &mut known, waited, &mut tell).await {
            Ok(Turn::Did { is_progress }) => {
                (conflicts, so_far.fails) = (0, None);
                if is_progress {
                    so_far.waits = None;
                }
                continue;
            }
            Ok(Turn::Rests(seen, Next::Wait(wait))) => {
                so_far.fails = None;
                if so_far.waits(&wait) > patience {
                    return Ok((seen, Next::Wait(wait)));
                }
                tell(Event::Waits(&wait));
            }
            Ok(Turn::Rests(seen, end)) => return Ok((seen, end)),
            Err(error) if error.is_conflict() && conflicts < CONFLICTS_MAX => {
                conflicts += 1;
                so_far.waits = None;
                continue;
            }
            Err(error) if error.may_pass() && so_far.fails() <= patience => {
                tell(Event::Waits(&for_an_answer(&error)));
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// For a server that fails.
fn for_an_answer(error: &CarryOutError) -> Wait {
    let mut said = vec![error.to_string()];
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        said.push(error.to_string());
        cause = error.source();
    }
    Wait { node: String::new(), what: "the API server to answer".to_owned(), said }
}

impl Wait {
    /// Whether it is for the same, whatever is said of it.
    fn is_same(&self, other: &Self) -> bool {
        self.node == other.node && self.what == other.what
    }
}

impl CarryOutError {
    /// Whether the same may go well a moment later.
    fn may_pass(&self) -> bool {
        match self {
            Self::Look(error) => error.may_pass(),
            Self::Write { source, .. } => may_pass(source),
            Self::Kept { .. } => false,
        }
    }

    /// Whether somebody else wrote the object in between.
    fn is_conflict(&self) -> bool {
        let Self::Write { source, .. } = self else { return false };
        matches!(&**source, kube::Error::Api(status) if status.code == 409)
    }
}

async fn carry_out(client: &Client, seen: &Seen, step: &Step) -> Result<(), CarryOutError> {
    let written = match step {
        Step::Label { node, phase } => label(client, node, &asks(seen, node, *phase)).await,
        Step::Unlabel { node } => {
            let gone = json!({"labels": {LABEL: null}, "annotations": {REPORT: null}});
            label(client, node, &gone).await
        }
        Step::AskNames { node, at } => {
            label(client, node, &json!({"labels": {NAMES_ASKED: at.to_string()}})).await
        }
        Step::ForgetNames { node } => {
            let gone = json!({"labels": {NAMES_ASKED: null}, "annotations": {NAMES_ANSWER: null}});
            label(client, node, &gone).await
        }
        Step::ScaleDown { namespace, name, .. } => {
            core_dns::scale(client, namespace, name, true).await
        }
        Step::ScaleBack { namespace, name, .. } => {
            core_dns::scale(client, namespace, name, false).await
        }
        Step::Restrict | Step::Restore => {
            // The plan has none of these without it.
            let Some(proxy) = seen.proxy() else { return Ok(()) };
            daemon_set(client, proxy, *step == Step::Restrict).await?
        }
    };
    let told = |source| CarryOutError::Write { step: step.words(), source: Box::new(source) };
    written.map_err(told)
}

/// What has an agent do something else: the label, and in the same write its report goes but for what
/// stays true. One of a moment ago about the same value would count, though all it says may have been
/// undone between the two (there, back and there again).
fn asks(seen: &Seen, node: &str, phase: KubeProxy) -> Value {
    let found = seen.nodes.iter().find(|found| found.name == node);
    let report = found.and_then(|found| found.report.as_ref()).and_then(Report::withdrawn);
    let left = report.map(|report| json!(report).to_string());
    json!({"labels": {LABEL: phase.value()}, "annotations": {REPORT: left}})
}

/// Merges something into a Node's metadata.
async fn label(client: &Client, node: &str, metadata: &Value) -> Result<(), kube::Error> {
    let patch = Patch::Merge(json!({"metadata": metadata}));
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.patch(node, &PatchParams::default(), &patch).await.map(|_| ())
}

/// Where kube-proxy's DaemonSet is read and written whole, so that all else in it stays as it is.
fn daemon_sets(client: &Client, proxy: &Proxy) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<DaemonSet>(&());
    Api::namespaced_with(client.clone(), &proxy.namespace, &resource)
}

/// Restricts kube-proxy's DaemonSet, or puts it back: only where nobody else wrote it in between.
async fn daemon_set(
    client: &Client,
    proxy: &Proxy,
    restrict: bool,
) -> Result<Result<(), kube::Error>, CarryOutError> {
    let api = daemon_sets(client, proxy);
    let mut set = match api.get(&proxy.name).await {
        Ok(set) => set,
        Err(error) => return Ok(Err(error)),
    };
    let changed = if restrict { set_restricted(&mut set) } else { set_back(&mut set, proxy)? };
    if !changed {
        return Ok(Ok(())); // somebody else did
    }
    Ok(api.replace(&proxy.name, &PostParams::default(), &set).await.map(|_| ()))
}

/// Where a template says on which nodes its pods may be.
fn pod_spec(set: &mut DynamicObject) -> &mut Value {
    &mut set.data["spec"]["template"]["spec"]
}

/// Whether that changes anything.
fn set_restricted(set: &mut DynamicObject) -> bool {
    let kept = set.metadata.annotations.iter().flatten().any(|(key, _)| key == BEFORE);
    let found = pod_spec(set)["affinity"].clone();
    if kept && affinity::is_restricted(&found) {
        return false;
    }
    // Somebody may have changed it since, and left the label in a part of it.
    let before = affinity::without_label(&found);
    pod_spec(set)["affinity"] = affinity::restricted(&before);
    set.meta_mut()
        .annotations
        .get_or_insert_default()
        .insert(BEFORE.to_owned(), before.to_string());
    true
}

/// Whether that changes anything.
fn set_back(set: &mut DynamicObject, proxy: &Proxy) -> Result<bool, CarryOutError> {
    let notes = set.meta_mut().annotations.get_or_insert_default();
    let Some(kept) = notes.remove(BEFORE) else { return Ok(false) };
    if notes.is_empty() {
        set.metadata.annotations = None;
    }
    let before: Value = serde_json::from_str(&kept).map_err(|source| CarryOutError::Kept {
        daemon_set: format!("{}/{}", proxy.namespace, proxy.name),
        source,
    })?;
    match (pod_spec(set).as_object_mut(), before) {
        (Some(spec), Value::Null) => _ = spec.remove("affinity"),
        (Some(spec), before) => _ = spec.insert("affinity".to_owned(), before),
        (None, _) => {}
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::{
        super::plan::tests::{cluster, proxy},
        *,
    };

    #[test]
    fn with_another_label_an_agent_has_said_nothing_yet() {
        let mut seen = cluster(&[("a", Some(KubeProxy::Returning)), ("b", None)], true);
        let said = |connects_pods| Report {
            about: KubeProxy::Runs.value().to_owned(),
            done: true,
            said: vec!["Mizzen serves".to_owned()],
            at: seen.now_s,
            connects_pods,
        };
        let [of_a, of_b] = [Some(said(Some(false))), Some(said(Some(true)))];
        let unknown = Some(said(None));
        (seen.nodes[0].report, seen.nodes[1].report) = (of_a, of_b);
        let asked = asks(&seen, "a", KubeProxy::Runs);
        assert_eq!(asked["labels"], json!({LABEL: "runs"}));
        let left: Report =
            serde_json::from_str(asked["annotations"][REPORT].as_str().unwrap()).unwrap();
        assert!(!left.is_done(KubeProxy::Runs) && left.about.is_empty(), "{left:?}");
        assert_eq!(left.connects_pods, Some(false), "of this node, for the way back");
        for report in [None, unknown] {
            seen.nodes[0].report = report;
            let asked = asks(&seen, "a", KubeProxy::Runs);
            let notes = asked["annotations"].as_object().unwrap();
            assert_eq!(notes.get(REPORT), Some(&Value::Null), "a merge removes it");
        }
    }

    #[test]
    fn what_is_put_back_is_what_was_there() {
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name"}]}]}}});
        for (before, notes) in [
            (json!({"hostNetwork": true}), json!(null)),
            (json!({"hostNetwork": true, "affinity": affinity}), json!({"a": "b"})),
        ] {
            let text = json!({
                "apiVersion": "apps/v1", "kind": "DaemonSet",
                "metadata": {"name": "kube-proxy", "annotations": notes},
                "spec": {"template": {"spec": before, "unknown": {"kept": 1}}},
            });
            let original: DynamicObject = serde_json::from_value(text).unwrap();
            let mut set = original.clone();
            assert!(!set_back(&mut set.clone(), &proxy()).unwrap());
            assert!(set_restricted(&mut set));
            let once = set.clone();
            assert!(!set_restricted(&mut set), "once is enough");
            assert_eq!(set, once);
            // Somebody wrote the template anew, and the annotation stayed.
            pod_spec(&mut set)["affinity"] = pod_spec(&mut original.clone())["affinity"].clone();
            assert!(set_restricted(&mut set));
            assert_eq!(set, once);
            assert_ne!(set.data, original.data);
            assert!(set_back(&mut set, &proxy()).unwrap());
            assert_eq!(serde_json::to_string(&set.data).unwrap(), original.data.to_string());
            assert_eq!(set.metadata, original.metadata);
        }
    }

    /// What is kept never asks for the label, which nodes have no more when it is put back.
    #[test]
    fn an_affinity_that_somebody_changed_meanwhile_is_put_back_without_the_label() {
        let term = |key: &str| json!({"matchExpressions": [{"key": key, "operator": "Exists"}]});
        let terms = |set: &mut DynamicObject| {
            pod_spec(set)["affinity"]["nodeAffinity"]
                ["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
                .take()
        };
        let affinity = |terms: Value| {
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": terms}}})
        };
        let mut set: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "kube-proxy"},
            "spec": {"template": {"spec": {"affinity": affinity(json!([term("a")]))}}},
        }))
        .unwrap();
        assert!(set_restricted(&mut set));
        let mut changed = terms(&mut set);
        changed.as_array_mut().unwrap().push(term("b"));
        pod_spec(&mut set)["affinity"] = affinity(changed);
        assert!(set_restricted(&mut set), "the second term admits nodes without the label");
        assert!(affinity::is_restricted(&pod_spec(&mut set)["affinity"]));
        assert!(set_back(&mut set, &proxy()).unwrap());
        assert_eq!(terms(&mut set), json!([term("a"), term("b")]));
    }

    #[test]
    fn what_was_kept_and_is_no_json_is_an_error_and_nothing_is_lost() {
        let mut set: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": {"annotations": {BEFORE: "{"}},
        }))
        .unwrap();
        let error = set_back(&mut set, &proxy()).unwrap_err();
        assert!(error.to_string().contains("kube-system/kube-proxy"), "{error}");
    }
}
