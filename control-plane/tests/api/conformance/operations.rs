//! The tests that go through everything that can be done with objects of one kind.

use futures::io::AsyncBufReadExt as _;
use futures::{StreamExt as _, TryStreamExt as _};
use http::Request;
use serde_json::{Value, json};
use std::time::Duration;

use crate::server::{Server, deployment, pod};

/// A kind, and what is done with its objects.
struct Case {
    /// `api/v1` or `apis/apps/v1`.
    version: &'static str,
    plural: &'static str,
    namespaced: bool,
    /// An object without its name.
    object: Value,
    /// A status that the last object is given, where the kind has one that can be written.
    status: Value,
}

/// The last object's name.
const LAST: &str = "c";
/// What every object of a test carries, and what selects it.
const LABELED: &str = "labelSelector=special-label%3Dtest";

impl Case {
    fn collection(&self) -> String {
        let place = if self.namespaced { "/namespaces/default" } else { "" };
        format!("/{}{place}/{}", self.version, self.plural)
    }

    /// The object of that name.
    fn named(&self, name: &str) -> Value {
        let mut object = self.object.clone();
        object["metadata"]["name"] = name.into();
        object["metadata"]["labels"]["special-label"] = "test".into();
        if self.plural == "ipaddresses" {
            // Its name is what it is.
            let last = u32::from(name.as_bytes()[0]);
            object["metadata"]["name"] = format!("10.96.9.{last}").into();
        }
        object
    }

    fn path(&self, name: &str) -> String {
        let named = self.named(name);
        format!("{}/{}", self.collection(), named["metadata"]["name"].as_str().unwrap())
    }

    async fn is_discovered(&self, server: &Server) {
        let list = server.get(&format!("/{}", self.version)).await.unwrap();
        let resources = list["resources"].as_array().unwrap();
        let found = resources.iter().find(|one| one["name"] == self.plural).unwrap();
        assert_eq!(found["namespaced"], self.namespaced);
        let verbs = found["verbs"].as_array().unwrap();
        for verb in
            ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
        {
            assert!(verbs.contains(&json!(verb)), "{verb} of {}", self.plural);
        }
    }

    async fn listed(&self, server: &Server, path: &str) -> Value {
        server.get(&format!("{path}?{LABELED}")).await.unwrap()
    }

    /// Patch and update, as a watch that began before them sees them.
    async fn changes(&self, server: &Server, since: &str) {
        let query = format!("watch=true&resourceVersion={since}&{LABELED}&timeoutSeconds=60");
        let request = Request::get(format!("{}?{query}", self.collection()));
        let body = server.client.request_stream(request.body(Vec::new()).unwrap()).await.unwrap();
        let events = body.lines().map_ok(|line| serde_json::from_str::<Value>(&line).unwrap());
        let mut events = Box::pin(events);
        let path = self.path("a");
        let annotation = json!({"metadata": {"annotations": {"patched": "true"}}});
        let mut patched = server.patch("merge", &path, &annotation).await.unwrap();
        assert_eq!(patched["metadata"]["annotations"]["patched"], "true");
        patched["metadata"]["annotations"]["updated"] = "true".into();
        let updated = server.put(&path, &patched).await.unwrap();
        assert_eq!(updated["metadata"]["annotations"]["updated"], "true");
        for annotation in ["patched", "updated"] {
            let next = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
            let event = next.expect("no event in time").unwrap().unwrap();
            assert_eq!(event["type"], "MODIFIED", "{event}");
            let found = &event["object"]["metadata"]["annotations"];
            assert_eq!(found[annotation], "true", "{event}");
        }
    }

    /// Status alone is written by its subresource, and by it alone.
    async fn status(&self, server: &Server) {
        if self.status.is_null() {
            return;
        }
        let path = format!("{}/status", self.path(LAST));
        let patch = json!({
            "metadata": {"annotations": {"patchedstatus": "true"}},
            "status": self.status,
        });
        let patched = server.patch("merge", &path, &patch).await.unwrap();
        // All but attachments have metadata written by either way.
        let kept = &patched["metadata"]["annotations"]["patchedstatus"];
        assert_eq!(kept.is_null(), self.plural == "volumeattachments", "{patched}");
        holds(&patched["status"], &self.status);
        let mut read = server.get(&path).await.unwrap();
        assert_eq!(read, patched);
        read["spec"] = Value::Null;
        read["metadata"]["annotations"]["updatedstatus"] = "true".into();
        let written = server.put(&path, &read).await;
        // A body without its spec may be no object of the kind.
        if let Ok(written) = written {
            assert_eq!(written["spec"], patched["spec"]);
            holds(&written["status"], &self.status);
        }
        let mut whole = server.get(&self.path(LAST)).await.unwrap();
        whole["status"] = Value::Null;
        let written = server.put(&self.path(LAST), &whole).await.unwrap();
        holds(&written["status"], &self.status);
    }

    async fn run(&self) {
        let server = Server::start().await;
        self.is_discovered(&server).await;
        let collection = self.collection();
        for name in ["a", "b", LAST] {
            let made = server.post(&collection, &self.named(name)).await.unwrap();
            assert!(
                made["metadata"]["uid"].is_string()
                    && made["metadata"]["creationTimestamp"].is_string()
            );
            assert_eq!(server.get(&self.path(name)).await.unwrap(), made);
        }
        let exists = server.post(&collection, &self.named("a")).await.unwrap_err();
        assert_eq!((&exists["code"], &exists["reason"]), (&json!(409), &json!("AlreadyExists")));
        let everywhere = format!("/{}/{}", self.version, self.plural);
        for path in [&collection, &everywhere] {
            let list = self.listed(&server, path).await;
            assert_eq!(list["items"].as_array().unwrap().len(), 3, "{path}");
        }
        let since = self.listed(&server, &collection).await;
        let since = since["metadata"]["resourceVersion"].as_str().unwrap();
        self.changes(&server, since).await;
        self.status(&server).await;
        // Of some kinds the dependents stay otherwise, and a collector would have to see to that.
        let now = json!({"gracePeriodSeconds": 0, "propagationPolicy": "Background"});
        server.delete(&self.path("a"), &now).await.unwrap();
        let gone = server.get(&self.path("a")).await.unwrap_err();
        assert_eq!((&gone["code"], &gone["reason"]), (&json!(404), &json!("NotFound")));
        let all = format!("{collection}?{LABELED}");
        server.delete(&all, &now).await.unwrap();
        assert_eq!(self.listed(&server, &collection).await["items"], json!([]));
    }
}

/// Everything of the second is in the first.
fn holds(found: &Value, wanted: &Value) {
    match (found, wanted) {
        (Value::Object(_), Value::Object(fields)) => {
            for (field, value) in fields {
                holds(&found[field], value);
            }
        }
        (Value::Array(items), Value::Array(those)) if items.len() == those.len() => {
            for (item, value) in items.iter().zip(those) {
                holds(item, value);
            }
        }
        _ => assert_eq!(found, wanted),
    }
}

fn case(version: &'static str, plural: &'static str, object: Value) -> Case {
    Case { version, plural, namespaced: true, object, status: Value::Null }
}

impl Case {
    fn of_cluster(self) -> Self {
        Self { namespaced: false, ..self }
    }

    fn with_status(self, status: Value) -> Self {
        Self { status, ..self }
    }
}

macro_rules! tests {
    ($($name:ident: $case:expr;)*) => {
        $(#[tokio::test]
        async fn $name() {
            $case.run().await;
        })*
    };
}

fn pod_template() -> Value {
    deployment("web")["spec"]["template"].clone()
}

fn stateful_set() -> Value {
    json!({"spec": {"serviceName": "web", "selector": {"matchLabels": {"app": "web"}},
        "template": pod_template()}})
}

fn budget() -> Value {
    json!({"spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}})
}

fn condition(kind: &str) -> Value {
    json!([{"type": kind, "status": "True", "reason": "E2E", "message": "Set from e2e test",
        "lastTransitionTime": "2026-01-02T03:04:05Z"}])
}

tests! {
    ingress_api_should_support_creating_ingress_api_operations:
        case("apis/networking.k8s.io/v1", "ingresses", json!({"spec": {"defaultBackend": {
            "service": {"name": "web", "port": {"number": 80}}}}}))
        .with_status(json!({"loadBalancer": {"ingress": [{"ip": "169.1.1.1"}]}}));
    ingress_class_api_should_support_creating_ingress_class_api_operations:
        case("apis/networking.k8s.io/v1", "ingressclasses", json!({"spec": {"controller": "example.com/a"}}))
        .of_cluster();
    netpol_api_should_support_creating_network_policy_api_operations:
        case("apis/networking.k8s.io/v1", "networkpolicies", json!({"spec": {"podSelector": {}}}));
    endpoint_slice_should_support_creating_endpoint_slice_api_operations:
        case("apis/discovery.k8s.io/v1", "endpointslices", json!({"addressType": "IPv4",
            "endpoints": [{"addresses": ["1.2.3.4", "5.6.7.8"]}]}));
    service_cidr_and_ip_address_api_should_support_ip_address_api_operations:
        case("apis/networking.k8s.io/v1", "ipaddresses", json!({"spec": {"parentRef": {
            "resource": "services", "namespace": "default", "name": "foo"}}}))
        .of_cluster();
    cron_job_should_support_cron_job_api_operations:
        case("apis/batch/v1", "cronjobs", json!({"spec": {"schedule": "*/1 * * * *", "suspend": true,
            "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "OnFailure",
                "containers": [{"name": "c", "image": "hello"}]}}}}}}))
        .with_status(json!({"lastScheduleTime": "2026-01-02T03:04:05Z"}));
    job_should_apply_changes_to_a_job_status:
        case("apis/batch/v1", "jobs", json!({"spec": {"template": {"spec": {"restartPolicy": "Never",
            "containers": [{"name": "c", "image": "hello"}]}}}}))
        .with_status(json!({"conditions": condition("StatusUpdate")}));
    runtime_class_should_support_runtime_classes_api_operations:
        case("apis/node.k8s.io/v1", "runtimeclasses", json!({"handler": "runsc"})).of_cluster();
    storage_classes_should_run_through_the_lifecycle_of_a_storage_class:
        case("apis/storage.k8s.io/v1", "storageclasses", json!({"provisioner": "e2e-fake-provisioner"}))
        .of_cluster();
    volume_attachment_should_run_through_the_lifecycle_of_a_volume_attachment:
        case("apis/storage.k8s.io/v1", "volumeattachments", json!({"spec": {"attacher": "e2e.example",
            "nodeName": "n1", "source": {"persistentVolumeName": "v"}}}))
        .of_cluster();
    volume_attachment_should_apply_changes_to_a_volumeattachment_status:
        case("apis/storage.k8s.io/v1", "volumeattachments", json!({"spec": {"attacher": "e2e.example",
            "nodeName": "n1", "source": {"persistentVolumeName": "v"}}}))
        .of_cluster().with_status(json!({"attached": true}));
    volume_attributes_class_should_run_through_the_lifecycle_of_a_volume_attributes_class:
        case("apis/storage.k8s.io/v1", "volumeattributesclasses", json!({"driverName": "e2e.example",
            "parameters": {"iops": "100"}}))
        .of_cluster();
    csi_inline_volumes_should_run_through_the_lifecycle_of_a_csi_driver:
        case("apis/storage.k8s.io/v1", "csidrivers", json!({"spec": {"attachRequired": false,
            "volumeLifecycleModes": ["Ephemeral"]}}))
        .of_cluster();
    csi_nodes_should_run_through_the_lifecycle_of_a_csi_node:
        case("apis/storage.k8s.io/v1", "csinodes", json!({"spec": {"drivers": []}})).of_cluster();
    persistent_volumes_should_apply_changes_to_a_pv_status:
        case("api/v1", "persistentvolumes", json!({"spec": {"capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/nowhere"}}}))
        .of_cluster().with_status(json!({"phase": "Pending", "message": "StatusUpdate"}));
    persistent_volumes_should_apply_changes_to_a_pvc_status:
        case("api/v1", "persistentvolumeclaims", json!({"spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}))
        .with_status(json!({"conditions": condition("StatusPatched")}));
    pod_templates_should_run_the_lifecycle_of_pod_templates:
        case("api/v1", "podtemplates", json!({"template": pod_template()}));
    config_map_should_run_through_a_config_map_lifecycle:
        case("api/v1", "configmaps", json!({"data": {"valueName": "value"}}));
    secrets_should_patch_a_secret:
        case("api/v1", "secrets", json!({"data": {"key": "dmFsdWU="}, "type": "Opaque"}));
    lease_lease_api_should_be_available:
        case("apis/coordination.k8s.io/v1", "leases", json!({"spec": {"holderIdentity": "holder",
            "leaseDurationSeconds": 30, "acquireTime": "2026-01-02T03:04:05.000006Z"}}));
    limit_range_should_list_patch_and_delete_a_limit_range_by_collection:
        case("api/v1", "limitranges", json!({"spec": {"limits": [{"type": "Container",
            "default": {"cpu": "500m"}}]}}));
    resource_quota_should_manage_the_lifecycle_of_a_resource_quota:
        case("api/v1", "resourcequotas", json!({"spec": {"hard": {"pods": "2"}}}))
        .with_status(json!({"hard": {"pods": "2"}, "used": {"pods": "1"}}));
    replication_controller_should_test_the_lifecycle_of_a_replication_controller:
        case("api/v1", "replicationcontrollers", json!({"spec": {"template": pod_template()}}))
        .with_status(json!({"replicas": 1}));
    stateful_set_should_list_patch_and_delete_a_collection_of_stateful_sets:
        case("apis/apps/v1", "statefulsets", stateful_set());
    stateful_set_should_validate_statefulset_status_endpoints:
        case("apis/apps/v1", "statefulsets", stateful_set())
        .with_status(json!({"replicas": 0, "conditions": condition("StatusUpdate")}));
    replica_set_should_validate_replicaset_status_endpoints:
        case("apis/apps/v1", "replicasets", json!({"spec": {"template": pod_template(),
            "selector": {"matchLabels": {"app": "web"}}}}))
        .with_status(json!({"replicas": 0, "conditions": condition("StatusUpdate")}));
    deployment_should_validate_deployment_status_endpoints:
        case("apis/apps/v1", "deployments", json!({"spec": deployment("web")["spec"]}))
        .with_status(json!({"conditions": condition("StatusUpdate")}));
    controller_revision_should_manage_the_lifecycle_of_a_controller_revision:
        case("apis/apps/v1", "controllerrevisions", json!({"revision": 1, "data": {"spec": {}}}));
    listing_pod_disruption_budgets_for_all_namespaces_should_list_and_delete_a_collection:
        case("apis/policy/v1", "poddisruptionbudgets", budget());
    disruption_controller_should_update_patch_pod_disruption_budget_status:
        case("apis/policy/v1", "poddisruptionbudgets", budget())
        .with_status(json!({"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2,
            "desiredHealthy": 1, "expectedPods": 2}));
    priority_class_endpoints_can_be_operated_with_different_http_methods:
        case("apis/scheduling.k8s.io/v1", "priorityclasses", json!({"value": 10})).of_cluster();
    service_accounts_should_run_through_the_lifecycle_of_a_service_account:
        case("api/v1", "serviceaccounts", json!({"automountServiceAccountToken": false}));
    endpoints_should_test_the_lifecycle_of_an_endpoint:
        case("api/v1", "endpoints", json!({"subsets": [{"addresses": [{"ip": "10.0.0.24"}],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}]}));
    services_should_delete_a_collection_of_services:
        case("api/v1", "services", json!({"spec": {"ports": [{"port": 80}]}}));
    services_should_complete_a_service_status_lifecycle:
        case("api/v1", "services", json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}))
        .with_status(json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1", "ipMode": "VIP"}]}}));
    pods_should_delete_a_collection_of_pods: case("api/v1", "pods", json!({"spec": pod("p")["spec"]}));
    pods_should_patch_a_pod_status:
        case("api/v1", "pods", json!({"spec": pod("p")["spec"]}))
        .with_status(json!({"message": "Patched by e2e test", "reason": "E2E"}));
    nodes_should_run_through_the_lifecycle_of_a_node:
        case("api/v1", "nodes", json!({"spec": {}}))
        .of_cluster().with_status(json!({"phase": "Running"}));
    horizontal_pod_autoscaler_should_support_its_api_operations:
        case("apis/autoscaling/v2", "horizontalpodautoscalers", json!({"spec": {"maxReplicas": 3,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}}))
        .with_status(json!({"currentReplicas": 2, "desiredReplicas": 1}));
    certificates_api_should_support_csr_api_operations:
        case("apis/certificates.k8s.io/v1", "certificatesigningrequests", json!({"spec": {
            "request": request(), "signerName": "example.com/e2e", "usages": ["digital signature"],
            "expirationSeconds": 3600}}))
        .of_cluster().with_status(json!({"conditions": [{"type": "Failed", "status": "True",
            "reason": "E2E", "message": "Set from e2e test"}]}));
    cluster_roles_should_support_their_api_operations:
        case("apis/rbac.authorization.k8s.io/v1", "clusterroles", json!({"rules": []})).of_cluster();
    role_bindings_should_support_their_api_operations:
        case("apis/rbac.authorization.k8s.io/v1", "rolebindings", json!({"roleRef": {"kind": "ClusterRole",
            "apiGroup": "rbac.authorization.k8s.io", "name": "view"}}));
}

/// A request for a certificate, PEM in base64.
pub(super) fn request() -> String {
    use base64::Engine as _;
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    base64::engine::general_purpose::STANDARD.encode(request)
}
