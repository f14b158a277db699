//! Who may come in and what they may do, against a real server: tokens, impersonation, RBAC with
//! its escalation check, nodes, reviews, admission of pods, and the audit log.

use http::{Method, Request};
use kube::Client;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use mizzen_control_plane::pki::Authority;
use serde_json::{Value, json};

use crate::server::{Server, pod, said};

const PODS: &str = "/api/v1/namespaces/default/pods";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// A client of the server with other credentials than the administrator's.
async fn client(server: &Server, auth: AuthInfo) -> Client {
    let mut config = Kubeconfig::read_from(&server.kubeconfig).unwrap();
    config.auth_infos[0].auth_info = Some(auth);
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(config, &options).await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

async fn with_token(server: &Server, token: &str) -> Client {
    let auth: AuthInfo = serde_json::from_value(json!({"token": token})).unwrap();
    client(server, auth).await
}

/// A client with a certificate of the cluster's CA.
async fn with_certificate(server: &Server, user: &str, group: Option<&str>) -> Client {
    let authority = Authority::read(&server.data_dir().join("pki")).unwrap();
    let text = authority.kubeconfig(&server.url, user, group).unwrap();
    let config = Kubeconfig::from_yaml(&text).unwrap();
    client(server, config.auth_infos[0].auth_info.clone().unwrap()).await
}

/// What a client is answered: the object, or the Status of the failure.
async fn ask(client: &Client, method: Method, path: &str, body: &Value) -> Result<Value, Value> {
    ask_with(client, method, path, body, &[]).await
}

async fn ask_with(
    client: &Client,
    method: Method,
    path: &str,
    body: &Value,
    headers: &[(&str, &str)],
) -> Result<Value, Value> {
    let media = if method == Method::PATCH {
        "application/strategic-merge-patch+json"
    } else {
        "application/json"
    };
    let mut request = Request::builder().method(method).uri(path).header("content-type", media);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    match client.request::<Value>(request.body(body).unwrap()).await {
        Ok(value) => Ok(value),
        Err(kube::Error::Api(status)) => Err(serde_json::to_value(status).unwrap()),
        Err(other) => panic!("{other}"),
    }
}

async fn get(client: &Client, path: &str) -> Result<Value, Value> {
    ask(client, Method::GET, path, &Value::Null).await
}

async fn post(client: &Client, path: &str, body: &Value) -> Result<Value, Value> {
    ask(client, Method::POST, path, body).await
}

fn refused(outcome: Result<Value, Value>, message: &str) {
    let status = outcome.expect_err(message);
    let (code, reason, found) = said(&status);
    assert_eq!((code, reason), (403, "Forbidden"), "{found}");
    assert!(found.contains(message), "{found:?} does not say {message:?}");
}

/// Makes a service account and gives it a ClusterRole in a namespace.
async fn account(server: &Server, name: &str, role: Option<&str>) {
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    server.post(accounts, &json!({"metadata": {"name": name}})).await.unwrap();
    if let Some(role) = role {
        let binding = json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}],
        });
        let path = format!("{RBAC}/namespaces/default/rolebindings");
        server.post(&path, &binding).await.unwrap();
    }
}

async fn token(server: &Server, name: &str, spec: Value) -> Result<Value, Value> {
    let path = format!("/api/v1/namespaces/default/serviceaccounts/{name}/token");
    server.post(&path, &json!({"spec": spec})).await
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

async fn who(client: &Client) -> Value {
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    post(client, path, &json!({})).await.unwrap()["status"]["userInfo"].clone()
}

#[tokio::test]
async fn inv_126_a_token_that_nobody_issued_is_unauthorized() {
    let server = Server::start().await;
    let stranger = with_token(&server, "nonsense").await;
    for path in ["/api/v1/pods", "/healthz", "/nothing"] {
        let status = get(&stranger, path).await.unwrap_err();
        assert_eq!(said(&status), (401, "Unauthorized", "Unauthorized"), "{path}");
    }
}

#[tokio::test]
async fn inv_126_static_tokens_name_users() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.csv");
    std::fs::write(&file, "abc,jane,7,\"devs,ops\"\nroot,root,1,system:masters\n").unwrap();
    let server = Server::with(&["--in-memory", "--token-auth-file", file.to_str().unwrap()]).await;
    let jane = with_token(&server, "abc").await;
    let user = who(&jane).await;
    assert_eq!(user["username"], "jane");
    assert_eq!(user["uid"], "7");
    assert_eq!(user["groups"], json!(["devs", "ops", "system:authenticated"]));
    let status = get(&jane, PODS).await.unwrap_err();
    assert_eq!(
        said(&status),
        (
            403,
            "Forbidden",
            "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
        )
    );
    assert_eq!(status["details"]["kind"], "pods");
    let root = with_token(&server, "root").await;
    assert!(get(&root, PODS).await.is_ok());
}

#[tokio::test]
async fn inv_129_roles_and_bindings_hold_at_once_and_no_longer() {
    let server = Server::start().await;
    account(&server, "robot", None).await;
    let issued = token(&server, "robot", json!({})).await.unwrap();
    let robot = with_token(&server, &text(&issued, "/status/token")).await;
    refused(get(&robot, PODS).await, "User \"system:serviceaccount:default:robot\" cannot list");
    let role = json!({"metadata": {"name": "reader"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]});
    server.post(&format!("{RBAC}/namespaces/default/roles"), &role).await.unwrap();
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    let binding = json!({
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": "default"}],
    });
    for _ in 0..20 {
        server.post(&bindings, &binding).await.unwrap();
        assert!(get(&robot, PODS).await.is_ok());
        refused(get(&robot, "/api/v1/pods").await, "at the cluster scope");
        refused(post(&robot, PODS, &pod("p")).await, "cannot create resource \"pods\"");
        server.delete(&format!("{bindings}/reader"), &json!({})).await.unwrap();
        refused(get(&robot, PODS).await, "cannot list resource \"pods\"");
    }
}

#[tokio::test]
async fn nobody_grants_more_than_they_have() {
    let server = Server::start().await;
    account(&server, "boss", Some("admin")).await;
    let issued = token(&server, "boss", json!({})).await.unwrap();
    let boss = with_token(&server, &text(&issued, "/status/token")).await;
    let roles = format!("{RBAC}/namespaces/default/roles");
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    let role = |name: &str, group: &str, resource: &str| json!({"metadata": {"name": name}, "rules": [{"apiGroups": [group], "resources": [resource], "verbs": ["get"]}]});
    let binding = |name: &str, role: &str| {
        json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}],
        })
    };
    assert!(post(&boss, &roles, &role("own", "", "pods")).await.is_ok());
    let excess = post(&boss, &roles, &role("more", "", "nodes")).await;
    refused(
        excess,
        "is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\"]}",
    );
    assert!(post(&boss, &bindings, &binding("own", "view")).await.is_ok());
    refused(post(&boss, &bindings, &binding("all", "cluster-admin")).await, "not currently held");
    let status = post(&boss, &bindings, &binding("none", "nothing")).await.unwrap_err();
    assert_eq!(
        said(&status),
        (404, "NotFound", "clusterroles.rbac.authorization.k8s.io \"nothing\" not found")
    );
    // A rule that lets somebody bind a role is enough.
    let may_bind = json!({"metadata": {"name": "binder"}, "rules": [{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "resourceNames": ["cluster-admin"], "verbs": ["bind"]}]});
    server.post(&roles, &may_bind).await.unwrap();
    let bound = json!({
        "metadata": {"name": "binder"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "binder"},
        "subjects": [{"kind": "ServiceAccount", "name": "boss", "namespace": "default"}],
    });
    server.post(&bindings, &bound).await.unwrap();
    assert!(post(&boss, &bindings, &binding("all", "cluster-admin")).await.is_ok());
    // A binding keeps its role.
    let mut changed = server.get(&format!("{bindings}/own")).await.unwrap();
    changed["roleRef"]["name"] = "edit".into();
    let status = server.put(&format!("{bindings}/own"), &changed).await.unwrap_err();
    assert!(said(&status).2.contains("roleRef: Invalid value: "), "{status}");
    assert!(said(&status).2.contains("cannot change roleRef"), "{status}");
}

/// What a role says is granted again with a label that makes it part of another role.
#[tokio::test]
async fn nobody_grants_more_than_they_have_by_changing_the_rest_of_a_role() {
    let server = Server::start().await;
    let roles = format!("{RBAC}/clusterroles");
    let own = json!({"metadata": {"name": "labeller"}, "rules": [{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": ["patch"]}]});
    server.post(&roles, &own).await.unwrap();
    let gathers = json!({"metadata": {"name": "gathers"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"nobody": "has"}}]}});
    server.post(&roles, &gathers).await.unwrap();
    let binding = json!({
        "metadata": {"name": "labeller"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "labeller"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}],
    });
    server.post(&format!("{RBAC}/clusterrolebindings"), &binding).await.unwrap();
    let patch = async |name: &str, change: &Value| {
        let path = format!("{roles}/{name}");
        let as_jane = [("impersonate-user", "jane")];
        ask_with(&server.client, Method::PATCH, &path, change, &as_jane).await
    };
    let label =
        json!({"metadata": {"labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}}});
    refused(patch("cluster-admin", &label).await, "not currently held");
    assert!(patch("labeller", &label).await.is_ok());
    // What the garbage collector writes grants nothing.
    let finalizers = json!({"metadata": {"finalizers": ["example.com/one"]}});
    assert!(patch("cluster-admin", &finalizers).await.is_ok());
    let why = "must have cluster-admin privileges to use the aggregationRule";
    refused(patch("gathers", &json!({"aggregationRule": null})).await, why);
}

#[tokio::test]
async fn impersonation_takes_a_right_for_each_part() {
    let server = Server::start().await;
    let as_jane = [
        ("impersonate-user", "jane"),
        ("impersonate-group", "devs"),
        ("impersonate-extra-why", "test"),
    ];
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let admin = &server.client;
    let answer = ask_with(admin, Method::POST, path, &json!({}), &as_jane).await.unwrap();
    let user = &answer["status"]["userInfo"];
    assert_eq!(user["username"], "jane");
    assert_eq!(user["groups"], json!(["devs", "system:authenticated"]));
    assert_eq!(user["extra"], json!({"why": ["test"]}));
    refused(
        ask_with(admin, Method::GET, PODS, &Value::Null, &as_jane).await,
        "User \"jane\" cannot list",
    );
    account(&server, "robot", None).await;
    let issued = token(&server, "robot", json!({})).await.unwrap();
    let robot = with_token(&server, &text(&issued, "/status/token")).await;
    let outcome = ask_with(&robot, Method::GET, PODS, &Value::Null, &as_jane[..1]).await;
    refused(
        outcome,
        "users \"jane\" is forbidden: User \"system:serviceaccount:default:robot\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
    );
}

/// `[sig-auth] ServiceAccounts should mount an API token into pods`, the API's part.
#[tokio::test]
async fn inv_116_tokens_of_service_accounts_are_bound_and_end() {
    let server = Server::start().await;
    account(&server, "robot", Some("view")).await;
    let mut own = pod("p");
    own["spec"]["serviceAccountName"] = "robot".into();
    let own = server.post(PODS, &own).await.unwrap();
    let bound = json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": text(&own, "/metadata/uid")}});
    let issued = token(&server, "robot", bound.clone()).await.unwrap();
    assert_eq!(issued["spec"]["expirationSeconds"], 3600);
    assert_eq!(
        issued["spec"]["audiences"],
        json!(["https://kubernetes.default.svc.cluster.local"])
    );
    let robot = with_token(&server, &text(&issued, "/status/token")).await;
    let user = who(&robot).await;
    assert_eq!(user["username"], "system:serviceaccount:default:robot");
    assert_eq!(
        user["groups"],
        json!(["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"])
    );
    assert_eq!(user["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    assert!(get(&robot, PODS).await.is_ok());

    // Not of another pod, not for another time, not for somebody else's ears.
    let mut wrong = bound.clone();
    wrong["boundObjectRef"]["uid"] = "other".into();
    assert_eq!(said(&token(&server, "robot", wrong).await.unwrap_err()).0, 409);
    let short = token(&server, "robot", json!({"expirationSeconds": 599})).await.unwrap_err();
    assert!(said(&short).2.contains("may not specify a duration less than 10 minutes"), "{short}");
    account(&server, "other", None).await;
    let foreign = token(&server, "other", bound).await.unwrap_err();
    assert_eq!(said(&foreign).0, 400, "{foreign}");
    let vault = token(&server, "robot", json!({"audiences": ["vault"]})).await.unwrap();
    let vault = text(&vault, "/status/token");
    assert_eq!(said(&get(&with_token(&server, &vault).await, PODS).await.unwrap_err()).0, 401);
    let review = |audiences: Value| json!({"spec": {"token": vault, "audiences": audiences}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let known = server.post(reviews, &review(json!(["vault"]))).await.unwrap();
    assert_eq!(known["status"]["authenticated"], true);
    assert_eq!(known["status"]["audiences"], json!(["vault"]));
    let unknown = server.post(reviews, &review(json!([]))).await.unwrap();
    assert_eq!(unknown["status"]["authenticated"], Value::Null);

    // A token goes with its pod, and with its account.
    let now = json!({"gracePeriodSeconds": 0});
    server.delete(&format!("{PODS}/p"), &now).await.unwrap();
    assert_eq!(said(&get(&robot, PODS).await.unwrap_err()).0, 401);
    let unbound = text(&token(&server, "robot", json!({})).await.unwrap(), "/status/token");
    let unbound = with_token(&server, &unbound).await;
    assert!(get(&unbound, PODS).await.is_ok());
    server.delete("/api/v1/namespaces/default/serviceaccounts/robot", &json!({})).await.unwrap();
    assert_eq!(said(&get(&unbound, PODS).await.unwrap_err()).0, 401);
}

/// `[sig-auth] ServiceAccounts ServiceAccountIssuerDiscovery should support OIDC discovery of
/// service account issuer`, the server's part.
#[tokio::test]
async fn service_account_issuer_discovery_should_support_oidc_discovery_of_service_account_issuer()
{
    let server = Server::start().await;
    account(&server, "robot", None).await;
    let issued = text(&token(&server, "robot", json!({})).await.unwrap(), "/status/token");
    let robot = with_token(&server, &issued).await;
    let discovery = get(&robot, "/.well-known/openid-configuration").await.unwrap();
    assert_eq!(discovery["issuer"], "https://kubernetes.default.svc.cluster.local");
    assert_eq!(discovery["id_token_signing_alg_values_supported"], json!(["ES256"]));
    let keys = get(&robot, "/openid/v1/jwks").await.unwrap();
    let header = issued.split('.').next().unwrap();
    let header = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, header);
    let header: Value = serde_json::from_slice(&header.unwrap()).unwrap();
    assert_eq!(keys["keys"][0]["kid"], header["kid"]);
}

fn access(verb: &str, group: &str, resource: &str, namespace: &str) -> Value {
    json!({"spec": {"resourceAttributes": {"verb": verb, "group": group, "resource": resource, "namespace": namespace}}})
}

#[tokio::test]
async fn reviews_say_who_may_do_what() {
    let server = Server::start().await;
    account(&server, "robot", Some("view")).await;
    let issued = text(&token(&server, "robot", json!({})).await.unwrap(), "/status/token");
    let robot = with_token(&server, &issued).await;
    let root = "/apis/authorization.k8s.io/v1";
    let own = format!("{root}/selfsubjectaccessreviews");
    let answer = post(&robot, &own, &access("list", "", "pods", "default")).await.unwrap();
    assert_eq!(answer["status"]["allowed"], true);
    assert_eq!(
        answer["status"]["reason"],
        "RBAC: allowed by RoleBinding \"robot/default\" of ClusterRole \"view\" to ServiceAccount \"robot/default\""
    );
    let answer = post(&robot, &own, &access("list", "", "secrets", "default")).await.unwrap();
    assert_eq!(answer["status"], json!({"allowed": false}));
    // Of others only who may ask that.
    let mut of_jane = access("list", "", "pods", "default");
    of_jane["spec"]["user"] = "jane".into();
    of_jane["spec"]["groups"] = json!(["system:masters"]);
    let of_others = format!("{root}/subjectaccessreviews");
    refused(
        post(&robot, &of_others, &of_jane).await,
        "cannot create resource \"subjectaccessreviews\"",
    );
    assert_eq!(server.post(&of_others, &of_jane).await.unwrap()["status"]["allowed"], true);
    let local = format!("{root}/namespaces/default/localsubjectaccessreviews");
    assert_eq!(server.post(&local, &of_jane).await.unwrap()["status"]["allowed"], true);
    let rules = json!({"spec": {"namespace": "default"}});
    let rules = post(&robot, &format!("{root}/selfsubjectrulesreviews"), &rules).await.unwrap();
    let lists = rules["status"]["resourceRules"].as_array().unwrap();
    assert!(
        lists.iter().any(|rule| rule["resources"].as_array().unwrap().contains(&json!("pods/log")))
    );
    assert_eq!(rules["status"]["incomplete"], false);
    let none = server.post(&own, &json!({"spec": {}})).await.unwrap_err();
    assert_eq!(said(&none).0, 422);
}

#[tokio::test]
async fn a_node_writes_about_itself_and_its_pods_only() {
    let server = Server::start().await;
    let node = with_certificate(&server, "system:node:n1", Some("system:nodes")).await;
    let nodes = "/api/v1/nodes";
    let made = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}});
    post(&node, nodes, &made("n1", json!({"topology.kubernetes.io/zone": "a"}))).await.unwrap();
    refused(
        post(&node, nodes, &made("n2", json!({}))).await,
        "node \"n1\" is not allowed to modify node \"n2\"",
    );
    let reserved = json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}});
    let outcome = ask(&node, Method::PATCH, &format!("{nodes}/n1"), &reserved).await;
    refused(outcome, "is not allowed to modify labels: node-role.kubernetes.io/control-plane");
    let taints = json!({"spec": {"taints": [{"key": "x", "effect": "NoSchedule"}]}});
    refused(
        ask(&node, Method::PATCH, &format!("{nodes}/n1"), &taints).await,
        "is not allowed to modify taints",
    );
    refused(
        ask(&node, Method::DELETE, &format!("{nodes}/n1"), &Value::Null).await,
        "cannot delete resource \"nodes\"",
    );

    // Its lease, and nobody else's.
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    assert!(post(&node, leases, &json!({"metadata": {"name": "n1"}})).await.is_ok());
    refused(
        post(&node, leases, &json!({"metadata": {"name": "n2"}})).await,
        "same name as the requesting node",
    );
    refused(get(&node, &format!("{leases}/n2")).await, "same name as the requesting node");
}

#[tokio::test]
async fn a_node_reads_what_its_pods_refer_to_and_writes_their_status() {
    let server = Server::start().await;
    let node = with_certificate(&server, "system:node:n1", Some("system:nodes")).await;
    // A pod that is bound to it brings the right to what the pod refers to; no other does.
    let secret = |name: &str| json!({"metadata": {"name": name}, "stringData": {}});
    for name in ["own", "other"] {
        server.post("/api/v1/namespaces/default/secrets", &secret(name)).await.unwrap();
    }
    account(&server, "robot", None).await;
    let mut own = pod("own");
    own["spec"]["nodeName"] = "n1".into();
    own["spec"]["serviceAccountName"] = "robot".into();
    own["spec"]["volumes"] = json!([
        {"name": "s", "secret": {"secretName": "own"}},
        {"name": "t", "projected": {"sources": [
            {"serviceAccountToken": {"path": "own", "expirationSeconds": 3600}},
            {"serviceAccountToken": {"path": "vault", "audience": "vault", "expirationSeconds": 3600}},
        ]}},
        {"name": "c", "csi": {"driver": "vault.example.org"}},
    ]);
    let driver = json!({"metadata": {"name": "vault.example.org"},
                        "spec": {"tokenRequests": [{"audience": "sts"}]}});
    server.post("/apis/storage.k8s.io/v1/csidrivers", &driver).await.unwrap();
    let own = server.post(PODS, &own).await.unwrap();
    let mut other = pod("other");
    other["spec"]["nodeName"] = "n2".into();
    other["spec"]["serviceAccountName"] = "robot".into();
    let other = server.post(PODS, &other).await.unwrap();
    let secrets = "/api/v1/namespaces/default/secrets";
    assert!(get(&node, &format!("{secrets}/own")).await.is_ok());
    refused(
        get(&node, &format!("{secrets}/other")).await,
        "no relationship found between node 'n1' and this object",
    );
    refused(get(&node, secrets).await, "cannot list resource \"secrets\"");
    assert!(get(&node, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await.is_ok());
    refused(
        get(&node, "/api/v1/pods").await,
        "can only list/watch pods with spec.nodeName field selector",
    );
    refused(get(&node, &format!("{PODS}/other")).await, "no relationship found");
    let status = json!({"status": {"phase": "Running"}});
    assert!(ask(&node, Method::PATCH, &format!("{PODS}/own/status"), &status).await.is_ok());
    let outcome = ask(&node, Method::PATCH, &format!("{PODS}/other/status"), &status).await;
    refused(outcome, "can only update pod status for pods with spec.nodeName set to itself");
    refused(
        ask(&node, Method::DELETE, &format!("{PODS}/other"), &Value::Null).await,
        "can only delete pods",
    );
    refused(post(&node, PODS, &pod("mine")).await, "can only create mirror pods");

    tokens_are_for_its_own_pods(&node, &own, &other).await;
}

/// And for those alone whom the pods' volumes name, or their drivers.
async fn tokens_are_for_its_own_pods(node: &Client, own: &Value, other: &Value) {
    let path = "/api/v1/namespaces/default/serviceaccounts/robot/token";
    let request = |of: &Value| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": text(of, "/metadata/name"), "uid": text(of, "/metadata/uid")}}});
    assert!(post(node, path, &request(own)).await.is_ok());
    let audiences = |audiences: &[&str]| {
        let mut request = request(own);
        request["spec"]["audiences"] = json!(audiences);
        request
    };
    assert!(post(node, path, &audiences(&["vault"])).await.is_ok());
    assert!(post(node, path, &audiences(&["sts"])).await.is_ok(), "its CSI driver asks for it");
    refused(
        post(node, path, &audiences(&["bank"])).await,
        "audience \"bank\" not found in pod spec volume",
    );
    refused(
        post(node, path, &audiences(&["vault", "bank"])).await,
        "node may only request 0 or 1 audiences",
    );
    refused(
        post(node, path, &request(other)).await,
        "node requested token bound to a pod scheduled on a different node",
    );
    refused(
        post(node, path, &json!({"spec": {}})).await,
        "node requested token not bound to a pod",
    );
}

#[tokio::test]
async fn a_pod_has_the_priority_of_its_class() {
    let server = Server::start().await;
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let class = |name: &str, value: i64, default: bool| json!({"metadata": {"name": name}, "value": value, "globalDefault": default});
    let plain = server.post(PODS, &pod("plain")).await.unwrap();
    assert_eq!(plain["spec"]["priority"], 0);
    assert_eq!(plain["spec"]["preemptionPolicy"], "PreemptLowerPriority");
    server.post(classes, &class("high", 1000, false)).await.unwrap();
    server.post(classes, &class("usual", 10, true)).await.unwrap();
    // One class is the default one, and may be changed.
    let why = "PriorityClass usual is already marked as default. Only one default can exist";
    refused(server.post(classes, &class("more", 20, true)).await, why);
    let default = json!({"globalDefault": true, "description": "of most"});
    refused(server.patch("merge", &format!("{classes}/high"), &default).await, why);
    assert!(server.patch("merge", &format!("{classes}/usual"), &default).await.is_ok());
    let named = |name: &str, class: &str| {
        let mut pod = pod(name);
        pod["spec"]["priorityClassName"] = class.into();
        pod
    };
    assert_eq!(server.post(PODS, &named("a", "high")).await.unwrap()["spec"]["priority"], 1000);
    let system = server.post(PODS, &named("b", "system-node-critical")).await.unwrap();
    assert_eq!(system["spec"]["priority"], 2_000_001_000);
    let usual = server.post(PODS, &pod("c")).await.unwrap();
    assert_eq!(usual["spec"]["priorityClassName"], "usual");
    refused(
        server.post(PODS, &named("d", "none")).await,
        "no PriorityClass with name none was found",
    );
    let mut wrong = named("e", "high");
    wrong["spec"]["priority"] = 5.into();
    refused(
        server.post(PODS, &wrong).await,
        "the integer value of priority (5) must not be provided",
    );
    let reserved = server.post(classes, &class("system-mine", 5, false)).await.unwrap_err();
    assert_eq!(said(&reserved).0, 422);
    assert_eq!(
        said(&server.post(classes, &class("huge", 1_000_000_001, false)).await.unwrap_err()).0,
        422
    );
}

#[tokio::test]
async fn the_audit_log_says_who_did_what() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.log");
    let server = Server::with(&["--in-memory", "--audit-log-path", file.to_str().unwrap()]).await;
    server
        .post("/api/v1/namespaces/default/configmaps", &json!({"metadata": {"name": "seen"}}))
        .await
        .unwrap();
    let as_jane = [("impersonate-user", "jane")];
    ask_with(&server.client, Method::GET, PODS, &Value::Null, &as_jane).await.unwrap_err();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let events: Vec<Value> = loop {
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        if lines.iter().any(|event| event["responseStatus"]["code"] == 403) {
            break lines;
        }
        assert!(std::time::Instant::now() < deadline, "{text}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let created = events.iter().find(|event| event["verb"] == "create").unwrap();
    assert_eq!(created["user"]["username"], "kubernetes-admin");
    assert_eq!(
        created["objectRef"],
        json!({"resource": "configmaps", "namespace": "default", "apiVersion": "v1"})
    );
    assert_eq!(created["responseStatus"]["code"], 201);
    assert_eq!(created["sourceIPs"], json!(["127.0.0.1"]));
    let refused = events.iter().find(|event| event["responseStatus"]["code"] == 403).unwrap();
    assert_eq!(refused["impersonatedUser"]["username"], "jane");
    assert_eq!(refused["annotations"], json!({"authorization.k8s.io/decision": "forbid"}));
}
