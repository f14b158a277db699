//! Rules and impersonation by unmodified `kubectl`, where the machine has it.

use crate::kubectl::Kubectl;
use crate::server::Server;

/// Standard output and error of a command that must fail.
async fn refused(kubectl: &Kubectl, arguments: &str) -> String {
    let output = kubectl.output(arguments, "").await;
    assert!(!output.status.success(), "kubectl {arguments}");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

const MANIFEST: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: default}
rules:
- {apiGroups: [''], resources: [pods], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects:
- {kind: ServiceAccount, name: robot, namespace: default}
- {kind: User, name: jane, apiGroup: rbac.authorization.k8s.io}
";

#[tokio::test]
async fn inv_129_rules_that_are_applied_hold_for_whom_they_name() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    let made = kubectl.with("apply -f -", MANIFEST).await;
    assert_eq!(
        made,
        "role.rbac.authorization.k8s.io/reader created\nrolebinding.rbac.authorization.k8s.io/reader created\n"
    );
    let bindings = kubectl.with("get rolebindings -o wide", "").await;
    let row: Vec<&str> = bindings.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        (row[0], row[1], row[3], row[4]),
        ("reader", "Role/reader", "jane", "default/robot")
    );
    let as_jane = "--as jane";
    let none = kubectl.output(&format!("{as_jane} get pods"), "").await;
    assert!(none.status.success(), "{}", String::from_utf8_lossy(&none.stderr));
    assert_eq!(
        refused(&kubectl, &format!("{as_jane} get secrets")).await,
        "Error from server (Forbidden): secrets is forbidden: User \"jane\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\"\n"
    );
    assert_eq!(
        refused(&kubectl, &format!("{as_jane} get nodes")).await,
        "Error from server (Forbidden): nodes is forbidden: User \"jane\" cannot list resource \"nodes\" in API group \"\" at the cluster scope\n"
    );
}

#[tokio::test]
async fn the_roles_of_the_start_are_shown_and_explained() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    let roles = kubectl.with("get clusterroles -o name", "").await;
    for name in ["admin", "cluster-admin", "edit", "view", "system:node", "system:discovery"] {
        let line = format!("clusterrole.rbac.authorization.k8s.io/{name}\n");
        assert!(roles.contains(&line), "{name} is missing");
    }
    let view = kubectl.with("describe clusterrole view", "").await;
    assert!(view.contains("endpointslices.discovery.k8s.io"), "{view}");
    assert!(!view.contains("secrets"), "{view}");
    let classes = kubectl.with("get priorityclasses", "").await;
    let row: Vec<&str> = classes.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..3], ["system-cluster-critical", "2000000000", "false"]);
}

#[tokio::test]
async fn inv_128_auth_can_i_and_whoami() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    kubectl.with("create serviceaccount robot", "").await;
    kubectl.with("create role reader --verb get,list --resource pods", "").await;
    kubectl
        .with("create rolebinding reader --role reader --serviceaccount default:robot", "")
        .await;
    kubectl.with("create clusterrole nodes --verb get,list --resource nodes", "").await;
    kubectl.with("create clusterrolebinding nodes --clusterrole nodes --group devs", "").await;
    assert_eq!(kubectl.with("auth can-i create deployments", "").await, "yes\n");
    let robot = "--as system:serviceaccount:default:robot";
    assert_eq!(kubectl.with(&format!("auth can-i list pods {robot}"), "").await, "yes\n");
    assert_eq!(refused(&kubectl, &format!("auth can-i delete pods {robot}")).await, "no\n");
    assert_eq!(refused(&kubectl, &format!("auth can-i list pods -A {robot}")).await, "no\n");
    let devs = "--as jane --as-group devs";
    let nodes = kubectl.output(&format!("auth can-i list nodes {devs}"), "").await;
    assert!(String::from_utf8_lossy(&nodes.stdout).contains("yes"));
    let list = kubectl.with(&format!("auth can-i --list {robot}"), "").await;
    assert!(
        list.lines().any(|line| line.starts_with("pods ") && line.contains("[get list]")),
        "{list}"
    );
    let who = kubectl.with(&format!("auth whoami {devs}"), "").await;
    assert!(who.contains("Username") && who.contains("jane"), "{who}");
    assert!(who.contains("[devs system:authenticated]"), "{who}");
}

#[tokio::test]
async fn inv_129_reconcile_and_tokens_by_command() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    let account =
        r#"{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}}"#;
    kubectl.with("create -f -", account).await;
    // What it changed is told on the other output.
    let made = kubectl.output("auth reconcile -f -", MANIFEST).await;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made = String::from_utf8_lossy(&made.stdout);
    assert!(made.contains("role.rbac.authorization.k8s.io/reader reconciled"), "{made}");
    assert!(made.contains("rolebinding.rbac.authorization.k8s.io/reader reconciled"), "{made}");
    let token = kubectl.with("create token robot --duration 20m", "").await;
    let who = kubectl.with(&format!("--token {} auth whoami", token.trim()), "").await;
    // A certificate of the kubeconfig counts before a token.
    assert!(who.contains("kubernetes-admin"), "{who}");
}

#[tokio::test]
async fn inv_61_permissions_are_of_a_namespace() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    kubectl.with("create namespace team", "").await;
    kubectl.with("create rolebinding jane --clusterrole edit --user jane -n team", "").await;
    let jane = "--as jane";
    let made = kubectl.with(&format!("{jane} create configmap a -n team"), "").await;
    assert_eq!(made, "configmap/a created\n");
    assert_eq!(
        refused(&kubectl, &format!("{jane} create configmap a")).await,
        "error: failed to create configmap: configmaps is forbidden: User \"jane\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"default\"\n"
    );
    let described = kubectl.with("create quota few --hard=pods=2 -n team", "").await;
    assert_eq!(described, "resourcequota/few created\n");
}
