"""What programs written with the Python client do every day, against the server of a kubeconfig."""

import base64
import sys
import tempfile
import threading

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.exceptions import ApiException

NAMESPACE = "python"

MANIFEST = """
apiVersion: v1
kind: ConfigMap
metadata: {name: from-yaml, namespace: python}
data: {a: b}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: python}
spec: {selector: {app: web}, ports: [{port: 80}]}
"""


def refused(code, reason, call):
    """What the server says of a call that it has to refuse."""
    try:
        call()
    except ApiException as error:
        assert error.status == code, error
        assert f'"reason":"{reason}"' in error.body.replace(" ", ""), error.body
        return error.body
    raise AssertionError(f"{reason} was expected")


def objects(core):
    """Creates, reads, changes in three ways, and deletes."""
    core.create_namespace({"metadata": {"name": NAMESPACE}})
    made = core.create_namespaced_config_map(
        NAMESPACE, client.V1ConfigMap(metadata={"name": "a", "labels": {"n": "1"}}, data={"x": "1"})
    )
    assert made.metadata.uid and made.metadata.creation_timestamp.tzinfo
    patched = core.patch_namespaced_config_map("a", NAMESPACE, {"data": {"y": "2"}})
    assert patched.data == {"x": "1", "y": "2"}, patched.data
    patch = [{"op": "remove", "path": "/data/x"}]
    patched = core.patch_namespaced_config_map("a", NAMESPACE, patch)
    assert patched.data == {"y": "2"}, patched.data
    patched.data = {"z": "3"}
    replaced = core.replace_namespaced_config_map("a", NAMESPACE, patched)
    assert replaced.data == {"z": "3"}
    stale = lambda: core.replace_namespaced_config_map("a", NAMESPACE, patched)
    assert "the object has been modified" in refused(409, "Conflict", stale)
    again = lambda: core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "a"}})
    refused(409, "AlreadyExists", again)
    wrong = {"metadata": {"name": "A_"}}
    refused(422, "Invalid", lambda: core.create_namespaced_config_map(NAMESPACE, wrong))
    refused(404, "NotFound", lambda: core.read_namespaced_config_map("b", NAMESPACE))
    dry = core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "b"}}, dry_run="All")
    assert dry.metadata.name == "b"
    refused(404, "NotFound", lambda: core.read_namespaced_config_map("b", NAMESPACE))
    secret = core.create_namespaced_secret(
        NAMESPACE, client.V1Secret(metadata={"name": "s"}, string_data={"key": "value"})
    )
    assert base64.b64decode(secret.data["key"]) == b"value"
    gone = core.delete_namespaced_config_map("a", NAMESPACE, propagation_policy="Background")
    assert gone["status"] == "Success", gone


def pages(core):
    """Lists in pages, by selector, and deletes what a selector names."""
    for number in range(7):
        labels = {"page": "yes", "even": str(number % 2 == 0).lower()}
        core.create_namespaced_config_map(
            NAMESPACE, {"metadata": {"name": f"p{number}", "labels": labels}}
        )
    seen, token, left = [], None, []
    while True:
        page = core.list_namespaced_config_map(
            NAMESPACE, label_selector="page=yes", limit=3, _continue=token
        )
        seen += [item.metadata.name for item in page.items]
        token = page.metadata._continue
        left.append(page.metadata.remaining_item_count)
        if not token:
            break
    assert seen == [f"p{number}" for number in range(7)], seen
    core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="even=true")
    odd = core.list_namespaced_config_map(NAMESPACE, label_selector="page in (yes),even!=true")
    assert [item.metadata.name for item in odd.items] == ["p1", "p3", "p5"]
    one = core.list_config_map_for_all_namespaces(field_selector="metadata.name=p1")
    assert [item.metadata.namespace for item in one.items] == [NAMESPACE]


def watches(core):
    """Follows changes from a list on, and ends when it has seen enough."""
    start = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version

    def change():
        core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "w"}, "data": {"n": "1"}})
        core.patch_namespaced_config_map("w", NAMESPACE, {"data": {"n": "2"}})
        core.delete_namespaced_config_map("w", NAMESPACE)

    writer = threading.Thread(target=change)
    writer.start()
    seen, stream = [], watch.Watch()
    for event in stream.stream(
        core.list_namespaced_config_map,
        NAMESPACE,
        resource_version=start,
        timeout_seconds=60,
        allow_watch_bookmarks=True,
    ):
        seen.append((event["type"], event["object"].metadata.name, event["object"].data["n"]))
        if event["type"] == "DELETED":
            stream.stop()
    writer.join()
    assert seen == [("ADDED", "w", "1"), ("MODIFIED", "w", "2"), ("DELETED", "w", "2")], seen
    # Without changes it ends in time.
    assert list(watch.Watch().stream(core.list_namespaced_secret, "default", timeout_seconds=1)) == []


def workloads(apps, batch):
    """A deployment and its scale; a job of a template."""
    labels = {"app": "web"}
    pod = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels),
        spec=client.V1PodSpec(containers=[client.V1Container(name="c", image="hello")]),
    )
    deployment = client.V1Deployment(
        metadata=client.V1ObjectMeta(name="web"),
        spec=client.V1DeploymentSpec(
            replicas=1, selector=client.V1LabelSelector(match_labels=labels), template=pod
        ),
    )
    made = apps.create_namespaced_deployment(NAMESPACE, deployment)
    assert made.spec.strategy.rolling_update.max_surge == "25%", made.spec.strategy
    scale = apps.patch_namespaced_deployment_scale("web", NAMESPACE, {"spec": {"replicas": 3}})
    assert (scale.spec.replicas, scale.status.selector) == (3, "app=web"), scale
    assert apps.read_namespaced_deployment("web", NAMESPACE).spec.replicas == 3
    status = {"status": {"replicas": 3, "readyReplicas": 2}}
    assert apps.patch_namespaced_deployment_status("web", NAMESPACE, status).status.ready_replicas == 2
    pod.spec.restart_policy = "Never"
    job = client.V1Job(metadata={"name": "once"}, spec=client.V1JobSpec(template=pod))
    assert batch.create_namespaced_job(NAMESPACE, job).spec.backoff_limit == 6


def rights(api):
    """Who one is, and what one may do."""
    review = client.V1SelfSubjectAccessReview(
        spec={"resourceAttributes": {"verb": "delete", "resource": "nodes"}}
    )
    answer = client.AuthorizationV1Api(api).create_self_subject_access_review(review)
    assert answer.status.allowed, answer
    who = client.AuthenticationV1Api(api).create_self_subject_review({})
    assert who.status.user_info.username == "kubernetes-admin", who
    core = client.CoreV1Api(api)
    core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": "robot"}})
    token = core.create_namespaced_service_account_token(
        "robot", NAMESPACE, {"spec": {"expirationSeconds": 600}}
    )
    robot = client.Configuration.get_default_copy()
    robot.cert_file = robot.key_file = None
    robot.api_key = {"authorization": f"Bearer {token.status.token}"}
    robot.api_key_prefix = {}
    core = client.CoreV1Api(client.ApiClient(robot))
    said = refused(403, "Forbidden", lambda: core.list_namespaced_secret(NAMESPACE))
    assert f"system:serviceaccount:{NAMESPACE}:robot" in said, said


def found(api):
    """What discovery says, used by the dynamic client; and manifests."""
    anything = dynamic.DynamicClient(api)
    maps = anything.resources.get(api_version="v1", kind="ConfigMap")
    maps.create(body={"metadata": {"name": "any"}}, namespace=NAMESPACE)
    maps.patch(
        name="any",
        namespace=NAMESPACE,
        body={"data": {"x": "1"}},
        content_type="application/merge-patch+json",
    )
    assert maps.get(name="any", namespace=NAMESPACE).data.x == "1"
    roles = anything.resources.get(api_version="rbac.authorization.k8s.io/v1", kind="Role")
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
    roles.create(body={"metadata": {"name": "r"}, "rules": [rule]}, namespace=NAMESPACE)
    assert [item.metadata.name for item in roles.get(namespace=NAMESPACE).items] == ["r"]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(MANIFEST)
        file.flush()
        utils.create_from_yaml(api, file.name)
    service = client.CoreV1Api(api).read_namespaced_service("web", NAMESPACE)
    assert service.spec.cluster_ip and service.spec.type == "ClusterIP"
    assert "apps" in [group.name for group in client.ApisApi(api).get_api_versions().groups]
    assert client.VersionApi(api).get_code().git_version.startswith("v1.35")


def main():
    config.load_kube_config(sys.argv[1])
    api = client.ApiClient()
    core = client.CoreV1Api(api)
    objects(core)
    pages(core)
    watches(core)
    workloads(client.AppsV1Api(api), client.BatchV1Api(api))
    rights(api)
    found(api)
    core.delete_namespace(NAMESPACE)
    print("done")


main()
