//! What a daemon set makes of nodes and pods, as tables.

use super::*;
use k8s_openapi::api::apps::v1::DaemonSetStatus;
use serde_json::{Value, json};

const NOW: &str = "2026-01-01T01:00:00Z";

pub(super) fn set(change: &Value) -> DaemonSet {
    let mut object = json!({
        "metadata": {"name": "each", "namespace": "default", "uid": "d", "generation": 1,
            "annotations": {history::GENERATION: "3", "kubernetes.io/change-cause": "first"}},
        "spec": {
            "selector": {"matchLabels": {"app": "each"}},
            "updateStrategy": {"type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
            "template": {
                "metadata": {"labels": {"app": "each"}},
                "spec": {"containers": [{"name": "c", "image": "v1"}]},
            },
        },
    });
    json_patch::merge(&mut object, change);
    serde_json::from_value(object).unwrap()
}

fn node(name: &str, change: &Value) -> Arc<Node> {
    let mut object = json!({"metadata": {"name": name, "labels": {"disk": "ssd"}}});
    json_patch::merge(&mut object, change);
    Arc::new(serde_json::from_value(object).unwrap())
}

fn tainted(effect: &str) -> Value {
    json!({"spec": {"taints": [{"key": "a", "effect": effect}]}})
}

/// A pod of the set on a node, ready, of the template whose revision has that hash.
pub(super) fn pod(name: &str, node: &str, hash: &str, change: &Value) -> Arc<Pod> {
    let mut object = json!({
        "metadata": {
            "name": name, "namespace": "default", "uid": name,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": "each", history::HASH_LABEL: hash},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "each",
                "uid": "d", "controller": true}],
        },
        "spec": {"containers": [], "nodeName": node},
        "status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        ]},
    });
    json_patch::merge(&mut object, change);
    Arc::new(serde_json::from_value(object).unwrap())
}

fn unready() -> Value {
    json!({"status": {"conditions": null}})
}

fn leaving() -> Value {
    json!({"metadata": {"deletionTimestamp": NOW}})
}

/// The revision of the set's present template.
pub(super) fn revision(set: &DaemonSet) -> Arc<ControllerRevision> {
    let seen = Seen { failure: None, ..seen(set) };
    let Some(Write::Create(Object::ControllerRevision(made))) = History::new(set, &[]).due(&seen)
    else {
        panic!("no revision")
    };
    Arc::new(*made)
}

fn seen(set: &DaemonSet) -> Seen<'_> {
    static NONE: std::sync::LazyLock<HashMap<String, Duration>> =
        std::sync::LazyLock::new(HashMap::new);
    Seen {
        set,
        revisions: &[],
        pods: &[],
        nodes: &[],
        waits: &NONE,
        failure: None,
        now: NOW.parse().unwrap(),
    }
}

/// A look at a set whose present template has its revision; pods with the hash `new` are of it.
fn look(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Plan {
    let revision = revision(set);
    let hash = revision.labels()[history::HASH_LABEL].clone();
    let pods: Vec<Arc<Pod>> = pods
        .iter()
        .map(|pod| {
            let mut pod = (**pod).clone();
            let label = pod.labels_mut().entry(history::HASH_LABEL.to_owned()).or_default();
            if label == "new" {
                label.clone_from(&hash);
            }
            Arc::new(pod)
        })
        .collect();
    reconcile(&Seen { revisions: &[revision], pods: &pods, nodes, ..seen(set) })
}

/// Names of pods that are deleted, and of nodes that get one.
fn moves(plan: &Plan) -> (Vec<String>, Vec<String>) {
    let (mut gone, mut made) = (Vec::new(), Vec::new());
    for write in &plan.outcome.writes {
        match write {
            Write::Together(writes) => gone.extend(writes.iter().filter_map(|write| match write {
                Write::Delete(deletion) => Some(deletion.target.key.name.clone()),
                Write::Tell(_) => None,
                other => panic!("{other:?}"),
            })),
            Write::SlowStart(pods, _) => made.extend(pods.iter().map(|pod| match pod {
                Object::Pod(pod) => pod::node_of(pod).unwrap().to_owned(),
                other => panic!("{other:?}"),
            })),
            _ => {}
        }
    }
    (gone, made)
}

fn status_of(plan: &Plan) -> DaemonSetStatus {
    let status = plan.outcome.writes.iter().find_map(|write| match write {
        Write::ReplaceSubresource("status", Object::DaemonSet(it)) => it.status.clone(),
        _ => None,
    });
    status.unwrap()
}

fn strategy(unavailable: &Value, surge: &Value) -> Value {
    json!({"spec": {"updateStrategy": {"rollingUpdate": {
        "maxUnavailable": unavailable, "maxSurge": surge}}}})
}

#[test]
fn a_new_set_has_a_revision_first_and_then_a_pod_for_each_node() {
    let set = set(&json!({}));
    let plan = reconcile(&seen(&set));
    let [Write::Create(Object::ControllerRevision(made))] = &plan.outcome.writes[..] else {
        panic!("{:?}", plan.outcome)
    };
    assert_eq!(made.revision, 1);
    let hash = &made.labels()[history::HASH_LABEL];
    assert_eq!((made.name_any(), &made.labels()["app"]), (format!("each-{hash}"), &"each".into()));
    assert_eq!(made.annotations()["kubernetes.io/change-cause"], "first");
    let template = &made.data.as_ref().unwrap().0["spec"]["template"];
    assert_eq!(template["$patch"], "replace");
    assert_eq!(template["spec"]["containers"][0]["image"], "v1");

    let nodes = [node("n1", &json!({})), node("n2", &json!({}))];
    let plan = look(&set, &nodes, &[]);
    assert_eq!(moves(&plan), (vec![], vec!["n1".to_owned(), "n2".to_owned()]));
    let Write::SlowStart(pods, _) = &plan.outcome.writes[0] else { panic!("{:?}", plan.outcome) };
    let Object::Pod(pod) = &pods[0] else { panic!("{pods:?}") };
    assert_eq!(pod.metadata.generate_name.as_deref(), Some("each-"));
    assert_eq!(pod.labels()[history::HASH_LABEL], *hash);
    assert_eq!(pod.labels()["pod-template-generation"], "3");
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.node_name, None, "the scheduler binds it");
    let keys = spec.tolerations.iter().flatten().filter_map(|one| one.key.as_deref());
    assert_eq!(
        keys.collect::<Vec<_>>().join(" ").replace("node.kubernetes.io/", ""),
        "not-ready unreachable disk-pressure memory-pressure pid-pressure unschedulable"
    );
}

#[test]
fn selectors_affinity_and_taints_decide_which_nodes_have_a_pod() {
    let host = json!({"spec": {"template": {"spec": {"hostNetwork": true}}}});
    let network = json!({"spec": {"taints": [
        {"key": "node.kubernetes.io/network-unavailable", "effect": "NoSchedule"}]}});
    let cordoned = json!({"spec": {"unschedulable": true, "taints": [
        {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}});
    let unreachable = json!({"spec": {"taints": [
        {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]}});
    let tolerant = json!({"spec": {"template": {"spec": {"tolerations": [
        {"key": "a", "operator": "Exists"}]}}}});
    let template = |spec: Value| json!({"spec": {"template": {"spec": spec}}});
    let hdd = template(json!({"nodeSelector": {"disk": "hdd"}}));
    let ssd = template(json!({"nodeSelector": {"disk": "ssd"}}));
    let affine = |name: &str| {
        template(json!({"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}
        ]}}}}))
    };
    let named = template(json!({"nodeName": "n2"}));
    // The set, the node, whether it gets a pod, and whether one that is there stays.
    let table = [
        (json!({}), json!({}), true, true),
        (ssd, json!({}), true, true),
        (hdd, json!({}), false, false),
        (affine("n1"), json!({}), true, true),
        (affine("n2"), json!({}), false, false),
        (named, json!({}), false, false),
        (json!({}), tainted("NoSchedule"), false, true),
        (json!({}), tainted("NoExecute"), false, false),
        (json!({}), tainted("PreferNoSchedule"), true, true),
        (tolerant.clone(), tainted("NoExecute"), true, true),
        (tolerant, tainted("NoSchedule"), true, true),
        (json!({}), cordoned, true, true),
        (json!({}), unreachable, true, true),
        (json!({}), network.clone(), false, true),
        (host, network, true, true),
    ];
    for (change, of_node, gets, keeps) in table {
        let (set, nodes) = (set(&change), [node("n1", &of_node)]);
        assert_eq!(
            moves(&look(&set, &nodes, &[])).1.len(),
            usize::from(gets),
            "{change} {of_node}"
        );
        let plan = look(&set, &nodes, &[pod("p", "n1", "new", &json!({}))]);
        assert_eq!(moves(&plan).0.is_empty(), keeps, "{change} {of_node}");
    }
}

#[test]
fn one_pod_a_node_the_oldest_and_none_while_one_goes() {
    let set = set(&json!({}));
    let nodes = [node("n1", &json!({}))];
    let younger = json!({"metadata": {"creationTimestamp": "2026-01-01T00:30:00Z"}});
    let two = [pod("b", "n1", "new", &younger), pod("c", "n1", "new", &json!({}))];
    assert_eq!(moves(&look(&set, &nodes, &two)), (vec!["b".to_owned()], vec![]));
    let goes = [pod("a", "n1", "new", &leaving())];
    assert_eq!(moves(&look(&set, &nodes, &goes)), (vec![], vec![]));
    // Not bound yet, but meant for the node.
    let waits = pod::new(&set, "new", "n1");
    let mut waits = Pod { metadata: pod("a", "n1", "new", &json!({})).metadata.clone(), ..waits };
    waits.metadata.name = Some("waits".into());
    assert_eq!(moves(&look(&set, &nodes, &[Arc::new(waits.clone())])), (vec![], vec![]));
    // The node is gone before the pod was bound; one that was bound is not ours to collect.
    let bound = pod("bound", "n9", "new", &json!({}));
    let plan = look(&set, &[], &[Arc::new(waits), bound]);
    assert_eq!(moves(&plan), (vec!["waits".to_owned()], vec![]));
}

#[test]
fn failed_pods_are_replaced_after_a_wait() {
    let set = set(&json!({}));
    let nodes = [node("n1", &json!({})), node("n2", &json!({}))];
    let failed = json!({"status": {"phase": "Failed", "conditions": null}});
    let pods = [pod("a", "n1", "h", &failed), pod("b", "n2", "h", &failed)];
    let waits = HashMap::from([("n2".to_owned(), Duration::from_secs(4))]);
    let mut revision = (*revision(&set)).clone();
    revision.labels_mut().insert(history::HASH_LABEL.into(), "h".into());
    let of = Seen { revisions: &[Arc::new(revision)], pods: &pods, nodes: &nodes, ..seen(&set) };
    let plan = reconcile(&Seen { waits: &waits, ..of });
    assert_eq!(moves(&plan).0, ["a"]);
    assert_eq!(plan.replaced, ["n1"]);
    assert_eq!(plan.outcome.again_after, Some(Duration::from_secs(4)));
    let Write::Tell(told) = &plan.outcome.writes[0] else { panic!("{:?}", plan.outcome) };
    assert_eq!(
        (told.warning, told.reason, told.message.as_str()),
        (
            true,
            "FailedDaemonPod",
            "Found failed daemon pod default/a on node n1, will try to kill it"
        )
    );
}

#[test]
fn pods_of_old_templates_go_as_many_as_may_be_missing() {
    let nodes: Vec<_> = (1..=4).map(|index| node(&format!("n{index}"), &json!({}))).collect();
    let old = |index: usize, change: &Value| {
        pod(&format!("p{index}"), &format!("n{index}"), "old", change)
    };
    let all: Vec<_> = (1..=4).map(|index| old(index, &json!({}))).collect();
    let gone = |change: &Value, pods: &[Arc<Pod>]| moves(&look(&set(change), &nodes, pods)).0;
    assert_eq!(gone(&json!({}), &all), ["p1"]);
    assert_eq!(gone(&strategy(&json!("50%"), &json!(0)), &all), ["p1", "p2"]);
    assert_eq!(gone(&strategy(&json!("30%"), &json!(0)), &all), ["p1", "p2"], "rounded up");
    // What serves nobody goes at once, and counts.
    let mut some = all.clone();
    some[2] = old(3, &unready());
    some[3] = old(4, &unready());
    assert_eq!(gone(&json!({}), &some), ["p3", "p4"]);
    assert_eq!(gone(&strategy(&json!(3), &json!(0)), &some), ["p3", "p4", "p1"]);
    // A new one that is not available yet counts, and so does one that goes.
    let mut some = all.clone();
    some[0] = pod("p1", "n1", "new", &unready());
    assert!(gone(&json!({}), &some).is_empty());
    some[0] = old(1, &leaving());
    assert!(gone(&json!({}), &some).is_empty());
    some[0] = pod("p1", "n1", "new", &json!({}));
    assert_eq!(gone(&json!({}), &some), ["p2"]);
    let just = json!({"status": {"conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:59:30Z"}]}});
    some[0] = pod("p1", "n1", "new", &just);
    let patient = json!({"spec": {"minReadySeconds": 60}});
    assert!(gone(&patient, &some).is_empty(), "ready for half a minute only");
    // OnDelete leaves it to somebody else.
    let on_delete = json!({"spec": {"updateStrategy": {"type": "OnDelete"}}});
    assert!(gone(&on_delete, &all).is_empty());
}

#[test]
fn new_pods_come_beside_old_ones_where_there_may_be_two() {
    let nodes: Vec<_> = (1..=3).map(|index| node(&format!("n{index}"), &json!({}))).collect();
    let surge = set(&strategy(&json!(0), &json!(1)));
    let old = |index: usize, change: &Value| {
        pod(&format!("p{index}"), &format!("n{index}"), "old", change)
    };
    let mut pods: Vec<_> = (1..=3).map(|index| old(index, &json!({}))).collect();
    let both = |pods: &[Arc<Pod>]| moves(&look(&surge, &nodes, pods));
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(both(&pods), (vec![], names(&["n1"])));
    // While the new one starts, both stay and nobody else is next.
    pods.push(pod("q1", "n1", "new", &unready()));
    assert_eq!(both(&pods), (vec![], vec![]));
    // It can be relied on: the old one goes.
    pods[3] = pod("q1", "n1", "new", &json!({}));
    assert_eq!(both(&pods).0, ["p1"]);
    pods[0] = old(1, &leaving());
    assert_eq!(both(&pods), (vec![], names(&["n2"])));
    // An old one that is not ready has nothing to be kept for.
    pods[1] = old(2, &unready());
    pods.push(pod("q2", "n2", "new", &unready()));
    assert_eq!(both(&pods).0, ["p2"]);
}

#[test]
fn status_counts_nodes() {
    let set = set(&json!({"status": {"collisionCount": 2}}));
    let mut nodes: Vec<_> = (1..=4).map(|index| node(&format!("n{index}"), &json!({}))).collect();
    nodes.push(node("n5", &tainted("NoSchedule")));
    let pods = [
        pod("a", "n1", "new", &json!({})),
        pod("b", "n2", "new", &unready()),
        pod("c", "n3", "old", &leaving()),
        pod("d", "n4", "new", &json!({})),
        pod("e", "n5", "new", &json!({})),
    ];
    let status = status_of(&look(&set, &nodes, &pods));
    assert_eq!(
        serde_json::to_value(&status).unwrap(),
        json!({
            "collisionCount": 2, "observedGeneration": 1,
            "desiredNumberScheduled": 4, "currentNumberScheduled": 4, "numberMisscheduled": 1,
            "numberReady": 3, "numberAvailable": 3, "numberUnavailable": 1,
            "updatedNumberScheduled": 3,
        })
    );
    let patient = self::set(&json!({"spec": {"minReadySeconds": 3605}}));
    let plan = look(&patient, &nodes[..1], &pods[..1]);
    assert_eq!(status_of(&plan).number_unavailable, Some(1));
    assert_eq!(plan.outcome.again_after, Some(Duration::from_secs(5)));
}

#[test]
fn revisions_are_numbered_reused_and_forgotten() {
    let first = set(&json!({}));
    let one = revision(&first);
    let second = set(&json!({"spec": {"template": {"metadata": {"labels": {"v": "2"}}}}}));
    let due = |set: &DaemonSet, revisions: &[Arc<ControllerRevision>]| {
        History::new(set, revisions).due(&Seen { revisions, ..seen(set) })
    };
    let Some(Write::Create(Object::ControllerRevision(two))) =
        due(&second, std::slice::from_ref(&one))
    else {
        panic!("no second revision")
    };
    assert_eq!(two.revision, 2);
    let both = [one.clone(), Arc::new(*two)];
    assert_eq!(due(&second, &both), None);
    // Undone: the first is the third.
    let Some(Write::Replace(Object::ControllerRevision(again))) = due(&first, &both) else {
        panic!("not numbered anew")
    };
    assert_eq!((again.name_any(), again.revision), (one.name_any(), 3));

    // Three old ones, of which a pod still has one; two may be kept.
    let old = |name: &str, number: i64| {
        let mut old = (*one).clone();
        old.metadata.name = Some(name.into());
        old.metadata.uid = Some(name.into());
        old.labels_mut().insert(history::HASH_LABEL.into(), name.into());
        old.data = None;
        old.revision = number;
        Arc::new(old)
    };
    let revisions = [old("a", 1), old("b", 2), old("c", 3), Arc::new((*both[1]).clone())];
    let limited = set(&json!({"spec": {"revisionHistoryLimit": 2, "template": {
        "metadata": {"labels": {"v": "2"}}}}}));
    let history = History::new(&limited, &revisions);
    let pod = pod("p", "n1", "a", &json!({}));
    let gone = |pods: &[&Arc<Pod>]| -> Vec<String> {
        let writes = history.surplus(&limited, pods);
        let name = |write: &Write| match write {
            Write::Delete(deletion) => deletion.target.key.name.clone(),
            other => panic!("{other:?}"),
        };
        writes.iter().map(name).collect()
    };
    assert_eq!(gone(&[]), ["a"]);
    assert_eq!(gone(&[&pod]), ["b"]);
}

#[test]
fn a_revision_whose_name_is_taken_gets_another() {
    let set = set(&json!({}));
    let mut taken = (*revision(&set)).clone();
    taken.metadata.owner_references = None;
    taken.metadata.labels = None;
    taken.data = None;
    let failure = Failure { verb: "create", already_exists: true, message: "taken".to_owned() };
    let plan =
        reconcile(&Seen { revisions: &[Arc::new(taken)], failure: Some(&failure), ..seen(&set) });
    assert_eq!(status_of(&plan).collision_count, Some(1));
}
