//! Decisions by tables.

use serde_json::{Value, json};

use super::node::Graph;
use super::rbac::Rules;
use super::*;

fn rules(objects: &[(&str, Value)]) -> Rules {
    let mut rules = Rules::default();
    for (plural, object) in objects {
        let object = object.clone();
        match *plural {
            "clusterroles" => rules.put_cluster_role(serde_json::from_value(object).unwrap()),
            "roles" => rules.put_role(serde_json::from_value(object).unwrap()),
            "clusterrolebindings" => {
                rules.put_cluster_binding(serde_json::from_value(object).unwrap());
            }
            "rolebindings" => rules.put_binding(serde_json::from_value(object).unwrap()),
            other => panic!("{other}"),
        }
    }
    rules
}

fn bootstrapped(more: &[(&str, Value)]) -> Rules {
    rules(&[bootstrap::objects().as_slice(), more].concat())
}

fn user(name: &str) -> User {
    User::new(name, &[AUTHENTICATED])
}

fn binding(
    namespace: &str,
    name: &str,
    role: (&str, &str),
    subject: &Value,
) -> (&'static str, Value) {
    let role = json!({"apiGroup": rbac::GROUP, "kind": role.0, "name": role.1});
    let plural = if namespace.is_empty() { "clusterrolebindings" } else { "rolebindings" };
    let metadata = json!({"name": name, "namespace": namespace});
    (plural, json!({"metadata": metadata, "roleRef": role, "subjects": [subject]}))
}

fn named_user(name: &str) -> Value {
    json!({"kind": "User", "apiGroup": rbac::GROUP, "name": name})
}

/// `verb resource[/subresource][.group] [namespace] [name]` or `verb /path`.
fn asked(text: &str) -> Attributes<'_> {
    let mut words = text.split(' ');
    let (verb, what) = (words.next().unwrap(), words.next().unwrap());
    if what.starts_with('/') {
        return Attributes { verb, path: what, ..Attributes::default() };
    }
    let (what, group) = what.split_once('.').unwrap_or((what, ""));
    let (resource, subresource) = what.split_once('/').unwrap_or((what, ""));
    let namespace = words.next().unwrap_or_default().trim_matches('-');
    let name = words.next().unwrap_or_default();
    Attributes { verb, group, resource, subresource, namespace, name, ..Attributes::default() }
}

fn check(user: &User, rules: &Rules, graph: &Graph, allowed: &[&str], refused: &[&str]) {
    for text in allowed {
        let decision = decide(user, &asked(text), rules, graph);
        assert!(decision.is_allowed(), "{} may not {text}: {}", user.name, decision.why());
    }
    for text in refused {
        let decision = decide(user, &asked(text), rules, graph);
        assert!(!decision.is_allowed(), "{} may {text}: {}", user.name, decision.why());
    }
}

#[test]
fn inv_128_nothing_is_allowed_that_nobody_allows() {
    let graph = Graph::default();
    let refused = ["get pods default p", "list pods", "create namespaces", "get /metrics", "get /"];
    check(&user("jane"), &Rules::default(), &graph, &[], &refused);
    let masters = User::new("root", &[MASTERS]);
    check(&masters, &Rules::default(), &graph, &refused, &[]);
}

#[test]
fn inv_129_a_role_holds_in_its_namespace_and_for_what_it_says() {
    let role = json!({"metadata": {"name": "reader", "namespace": "a"}, "rules": [
        {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]},
        {"apiGroups": ["apps"], "resources": ["*/scale"], "verbs": ["update"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["one"], "verbs": ["get", "delete"]},
    ]});
    let bound = binding("a", "jane", ("Role", "reader"), &named_user("jane"));
    let rules = rules(&[("roles", role), bound]);
    let allowed = [
        "get pods a p",
        "list pods a",
        "get pods/log a p",
        "update deployments/scale.apps a d",
        "get configmaps a one",
    ];
    let refused = [
        "get pods b p",
        "list pods",
        "watch pods a",
        "get pods/exec a p",
        "get pods.apps a p",
        "update deployments.apps a d",
        "get configmaps a two",
        "list configmaps a",
    ];
    check(&user("jane"), &rules, &Graph::default(), &allowed, &refused);
    check(&user("janet"), &rules, &Graph::default(), &[], &allowed);
}

#[test]
fn a_cluster_role_holds_where_it_is_bound() {
    let in_namespace = binding("a", "edit", ("ClusterRole", "edit"), &named_user("ed"));
    let everywhere = binding("", "view", ("ClusterRole", "view"), &named_user("vi"));
    let rules = bootstrapped(&[in_namespace, everywhere]);
    let graph = Graph::default();
    check(
        &user("ed"),
        &rules,
        &graph,
        &["create pods a", "get secrets a s", "patch deployments.apps a d", "get configmaps a c"],
        &["create pods b", "create roles.rbac.authorization.k8s.io a", "list nodes"],
    );
    check(
        &user("vi"),
        &rules,
        &graph,
        &["list pods", "get pods/log b p", "list endpointslices.discovery.k8s.io"],
        &["get secrets a s", "create pods a", "list nodes", "get pods/exec a p"],
    );
}

#[test]
fn subjects_are_users_groups_and_service_accounts() {
    let account = json!({"kind": "ServiceAccount", "name": "robot", "namespace": "b"});
    let own = json!({"kind": "ServiceAccount", "name": "local"});
    let group = json!({"kind": "Group", "apiGroup": rbac::GROUP, "name": "devs"});
    let rules = bootstrapped(&[
        binding("a", "account", ("ClusterRole", "view"), &account),
        binding("a", "own", ("ClusterRole", "view"), &own),
        binding("a", "group", ("ClusterRole", "view"), &group),
    ]);
    let graph = Graph::default();
    let may = ["list pods a"];
    check(&user("system:serviceaccount:b:robot"), &rules, &graph, &may, &["list pods b"]);
    check(&user("system:serviceaccount:a:local"), &rules, &graph, &may, &[]);
    check(&User::new("x", &["devs"]), &rules, &graph, &may, &[]);
    check(&user("devs"), &rules, &graph, &[], &may);
    check(&user("system:serviceaccount:a:robot"), &rules, &graph, &[], &may);
}

#[test]
fn everybody_may_look_at_health_and_the_known_at_the_api() {
    let (rules, graph) = (bootstrapped(&[]), Graph::default());
    let health = ["get /healthz", "get /livez", "get /readyz", "get /version"];
    let known = [
        "get /api",
        "get /apis/apps/v1",
        "get /openapi/v3",
        "create selfsubjectaccessreviews.authorization.k8s.io",
        "create selfsubjectreviews.authentication.k8s.io",
    ];
    check(&User::anonymous(), &rules, &graph, &health, &known);
    check(&user("jane"), &rules, &graph, &[health.as_slice(), &known].concat(), &["get /metrics"]);
}

#[test]
fn reasons_name_binding_role_and_subject() {
    let rules = bootstrapped(&[
        binding("a", "b", ("ClusterRole", "view"), &named_user("jane")),
        binding("", "gone", ("ClusterRole", "nothing"), &named_user("jane")),
    ]);
    let why = |text: &str| {
        decide(&user("jane"), &asked(text), &rules, &Graph::default()).why().to_string()
    };
    assert_eq!(
        why("list pods a"),
        "RBAC: allowed by RoleBinding \"b/a\" of ClusterRole \"view\" to User \"jane\""
    );
    assert_eq!(
        why("list pods b"),
        "RBAC: clusterrole.rbac.authorization.k8s.io \"nothing\" not found"
    );
}

#[test]
fn inv_128_refusals_are_kubernetes_own() {
    let cases = [
        (
            "list pods default",
            "User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"",
        ),
        (
            "get pods/log default p",
            "User \"jane\" cannot get resource \"pods/log\" in API group \"\" in the namespace \"default\"",
        ),
        (
            "create clusterroles.rbac.authorization.k8s.io",
            "User \"jane\" cannot create resource \"clusterroles\" in API group \"rbac.authorization.k8s.io\" at the cluster scope",
        ),
        ("get /metrics", "User \"jane\" cannot get path \"/metrics\""),
    ];
    for (text, expected) in cases {
        assert_eq!(refusal(&user("jane"), &asked(text)), expected);
    }
}

fn graph() -> Graph {
    let mut graph = Graph::default();
    let pod = json!({"spec": {"nodeName": "n1", "serviceAccountName": "robot",
        "imagePullSecrets": [{"name": "pull"}],
        "containers": [{"envFrom": [{"configMapRef": {"name": "env"}}],
            "env": [{"valueFrom": {"secretKeyRef": {"name": "key"}}}]}],
        "volumes": [{"secret": {"secretName": "vol"}}, {"configMap": {"name": "map"}},
            {"projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}]}}],
    }});
    graph.put("a", "p", pod.to_string().as_bytes());
    let other = json!({"spec": {"nodeName": "n2", "containers": [], "volumes": [{"secret": {"secretName": "vol"}}, {"secret": {"secretName": "far"}}]}});
    graph.put("a", "q", other.to_string().as_bytes());
    let waiting = json!({"spec": {"containers": [], "imagePullSecrets": [{"name": "early"}]}});
    graph.put("a", "w", waiting.to_string().as_bytes());
    graph
}

#[test]
fn a_node_reads_what_its_pods_refer_to() {
    let (rules, mut graph) = (bootstrapped(&[]), graph());
    let node = User::new("system:node:n1", &[node::GROUP, AUTHENTICATED]);
    let own = ["get secrets a pull", "get secrets a key", "get configmaps a env", "get pods a p"];
    let allowed = [
        "get secrets a vol",
        "watch configmaps a map",
        "get configmaps a kube-root-ca.crt",
        "create serviceaccounts/token a robot",
        "get nodes - n1",
        "patch nodes/status - n2",
        "get leases.coordination.k8s.io kube-node-lease n1",
        "create leases.coordination.k8s.io kube-node-lease",
        "list services a",
        "patch pods/status a q",
        "create events a",
    ];
    let refused = [
        "get secrets a far",
        "get secrets a early",
        "get secrets b vol",
        "list secrets a",
        "list secrets",
        "update secrets a vol",
        "get pods a q",
        "list pods",
        "create serviceaccounts/token a other",
        "get serviceaccounts a robot",
        "get nodes - n2",
        "list nodes",
        "delete nodes - n1",
        "get leases.coordination.k8s.io kube-node-lease n2",
        "get leases.coordination.k8s.io default n1",
        "create pods/exec a p",
        "create clusterroles.rbac.authorization.k8s.io",
    ];
    check(&node, &rules, &graph, &[allowed.as_slice(), &own].concat(), &refused);
    let fields = [("spec.nodeName".to_owned(), "n1".to_owned())];
    let mut of_node = asked("watch pods");
    of_node.fields = &fields;
    assert!(decide(&node, &of_node, &rules, &graph).is_allowed());
    let fields = [("spec.nodeName".to_owned(), "n2".to_owned())];
    of_node.fields = &fields;
    assert!(!decide(&node, &of_node, &rules, &graph).is_allowed());

    // What a pod referred to goes with it, and what others refer to stays theirs.
    graph.remove("a", "p");
    check(&node, &rules, &graph, &[], &own);
    check(&node, &rules, &graph, &[], &["get secrets a vol"]);
    let other = User::new("system:node:n2", &[node::GROUP, AUTHENTICATED]);
    check(&other, &rules, &graph, &["get secrets a vol"], &[]);
}

#[test]
fn who_is_in_the_group_of_nodes_and_has_no_nodes_name_is_nobody() {
    let (rules, graph) = (bootstrapped(&[]), graph());
    let node = User::new("n1", &[node::GROUP, AUTHENTICATED]);
    check(&node, &rules, &graph, &[], &["get secrets a vol", "list services a", "get nodes - n1"]);
    let no_group = User::new("system:node:n1", &[AUTHENTICATED]);
    check(&no_group, &rules, &graph, &[], &["get secrets a vol", "list services a"]);
}

#[test]
fn components_may_do_their_work_and_no_more() {
    let (rules, graph) = (bootstrapped(&[]), Graph::default());
    check(
        &user("system:kube-scheduler"),
        &rules,
        &graph,
        &[
            "watch pods",
            "list nodes",
            "create pods/binding a p",
            "create events a",
            "patch pods/status a p",
        ],
        &["get secrets a s", "create pods a", "delete nodes - n"],
    );
    check(
        &user("system:kube-controller-manager"),
        &rules,
        &graph,
        &[
            "list pods",
            "create pods a",
            "create replicasets.apps a",
            "create endpointslices.discovery.k8s.io a",
            "create serviceaccounts a",
            "create configmaps a",
            "update namespaces/finalize - a",
            "patch replicasets/status.apps a r",
            "update clusterroles.rbac.authorization.k8s.io - r",
            "escalate clusterroles.rbac.authorization.k8s.io - r",
        ],
        &[
            "create clusterrolebindings.rbac.authorization.k8s.io",
            "create nodes",
            "create pods/exec a p",
        ],
    );
}

fn policy(value: Value) -> Vec<k8s_openapi::api::rbac::v1::PolicyRule> {
    serde_json::from_value(value).unwrap()
}

#[test]
fn rules_cover_others_part_by_part() {
    let own = policy(json!([
        {"apiGroups": ["", "apps"], "resources": ["pods", "deployments"], "verbs": ["get", "list"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["watch"]},
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a", "b"], "verbs": ["*"]},
        {"apiGroups": ["*"], "resources": ["*/scale"], "verbs": ["update"]},
        {"nonResourceURLs": ["/metrics/*"], "verbs": ["get"]},
    ]));
    let covered = json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "watch"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["x"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["b"], "verbs": ["delete"]},
        {"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["update"]},
        {"nonResourceURLs": ["/metrics/x", "/metrics/*"], "verbs": ["get"]},
    ]);
    assert_eq!(escalation::missing(&own, &policy(covered)), []);
    for more in [
        json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "create"]}),
        json!({"apiGroups": ["*"], "resources": ["pods"], "verbs": ["get"]}),
        json!({"apiGroups": [""], "resources": ["*"], "verbs": ["get"]}),
        json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}),
        json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a", "c"], "verbs": ["get"]}),
        json!({"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]}),
        json!({"nonResourceURLs": ["/metrics"], "verbs": ["get"]}),
        json!({"nonResourceURLs": ["*"], "verbs": ["get"]}),
    ] {
        assert_eq!(escalation::missing(&own, &policy(json!([more]))).len(), 1, "{more}");
    }
    assert_eq!(escalation::missing(&escalation::everything(), &own), []);
}

#[test]
fn an_escalation_is_named_rule_by_rule() {
    let own =
        (policy(json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}])), vec![]);
    let wanted = policy(json!([
        {"apiGroups": [""], "resources": ["secrets", "pods"], "verbs": ["get", "list"]},
        {"nonResourceURLs": ["/x"], "verbs": ["get"]},
    ]));
    let jane = User::new("jane", &["devs", AUTHENTICATED]);
    assert_eq!(
        escalation::forbids(&jane, &own, &wanted).unwrap(),
        "user \"jane\" (groups=[\"devs\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n\
         {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"list\"]}\n\
         {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}\n\
         {NonResourceURLs:[\"/x\"], Verbs:[\"get\"]}"
    );
    assert_eq!(escalation::forbids(&jane, &(wanted.clone(), vec![]), &wanted), None);
}

#[test]
fn a_rule_of_billions_of_parts_is_not_taken_apart() {
    let many =
        |what: &str| -> Vec<String> { (0..1000).map(|number| format!("{what}{number}")).collect() };
    let wanted = policy(json!([{
        "apiGroups": many("g"), "resources": many("r"), "resourceNames": many("n"), "verbs": many("v"),
    }]));
    let jane = User::new("jane", &[AUTHENTICATED]);
    let why = escalation::forbids(&jane, &(vec![], vec![]), &wanted).unwrap();
    assert!(why.contains("the rules stand for more than 10000 permissions"), "{why}");
    assert_eq!(escalation::forbids(&jane, &(escalation::everything(), vec![]), &wanted), None);
    // What is missing is said, up to a length.
    let wanted =
        policy(json!([{"apiGroups": [""], "resources": many("r"), "verbs": ["get", "list"]}]));
    let why = escalation::forbids(&jane, &(vec![], vec![]), &wanted).unwrap();
    assert!(why.contains("Resources:[\"r0\"], Verbs:[\"get\" \"list\"]}"), "{why}");
    assert!(why.len() < 17_000 && why.ends_with(" (and more)"), "{}", why.len());
}

#[test]
fn a_role_is_made_of_those_that_its_selectors_match() {
    let objects = bootstrap::objects();
    let find = |name: &str| {
        objects
            .iter()
            .find(|(plural, one)| *plural == "clusterroles" && one["metadata"]["name"] == name)
            .unwrap()
    };
    let count = |name: &str| find(name).1["rules"].as_array().unwrap().len();
    let parts =
        ["system:aggregate-to-view", "system:aggregate-to-edit", "system:aggregate-to-admin"];
    let [view, edit, admin] = parts.map(count);
    // Kubernetes' nested aggregation: `edit` has what `view` has, `admin` what `edit` has.
    assert_eq!(
        (count("view"), count("edit"), count("admin")),
        (view, view + edit, view + edit + admin)
    );
}
