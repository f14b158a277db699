//! `mizzen dns`: what a real agent says of its own answers.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, api::PostParams};
use mizzen_agent::{dns::resolv_conf::search_list, serve::names::Answers};
use mizzen_tests::{
    lab::{FAMILIES, Family},
    wait,
};
use serde_json::json;

use super::{
    field::{Field, LIMIT, NAME, UPSTREAM, on},
    upstream::Upstream,
};

#[test]
fn a_name_is_explained_by_what_answers_it() {
    let field = Field::new();
    let [host, other] = &field.hosts;
    let upstream = Family::V4.wire(UPSTREAM);
    other.node.netns.ip(&format!("addr add {upstream}/24 dev eth0"));
    let live = Upstream::start(&other.node.netns, &[upstream]);
    let client = field.client.clone();
    on(&field.runtime, async move {
        let slice = json!({
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"port": 8080}],
            "endpoints": [{
                "addresses": ["10.244.1.7"],
                "targetRef": {"kind": "Pod", "namespace": "default", "name": "client"},
            }],
        });
        let slices: Api<EndpointSlice> = Api::default_namespaced(client);
        let slice = serde_json::from_value(slice).unwrap();
        slices.create(&PostParams::default(), &slice).await.unwrap();
    });
    let _agent = field.agent(host, &[]);

    // By the pod's search list, and as a full name, which it is not.
    let said = wait::until("the pod", LIMIT, || {
        match host.mizzen(&["dns", "web", "--from", "default/client"]) {
            (Some(0), said) => Ok(said),
            other => Err(format!("{other:?}")),
        }
    });
    assert!(said.starts_with("web.default.svc.cluster.local. A: NOERROR ("), "{said}");
    assert!(said.contains("(cluster.local.): Service default/web\n"), "{said}");
    assert_eq!(said.matches(" A: ").count(), 1, "it is found at once: {said}");
    let (code, said) = host.mizzen(&["dns", "--from=client", "nope", "--type=aaaa"]);
    // The cluster's three domains, this machine's own, and the name as it is.
    let machine = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let tried = 4 + search_list(&machine).len();
    assert_eq!((code, said.matches(" AAAA: NXDOMAIN").count()), (Some(3), tried), "{said}");
    let (code, said) = host.mizzen(&["dns", "web", "--from", "default/nobody"]);
    assert!(code == Some(1) && said.contains("default/nobody is no pod of this node"), "{said}");
    let (code, said) = host.mizzen(&["dns", "web", "--type", "bogus"]);
    assert_eq!(code, Some(2), "{said}");

    let (code, said) = host.mizzen(&["dns", "www.example.org"]);
    assert!(code == Some(0) && said.contains("192.0.2.80"), "{said}");
    assert!(said.contains("from     upstream 172.30.0.200:53 (zone .)\n"), "{said}");
    let (code, said) = host.mizzen(&["dns", "www.example.org", "-o", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let answers: Answers = serde_json::from_str(&said).unwrap();
    let source = &answers.questions[0].sources[0];
    assert_eq!((&*source.kind, source.left_seconds.is_some_and(|left| left > 0)), ("cache", true));
    assert_eq!(source.answered_by.as_deref(), Some("172.30.0.200:53"), "{said}");
    assert!(source.age_seconds.is_some_and(|age| age < 30), "{said}");
    assert_eq!(live.times_asked("www.example.org."), 1);

    let (code, said) = host.mizzen(&["dns", "10.96.0.10"]);
    let owner = "10.0.96.10.in-addr.arpa. PTR: NOERROR";
    assert!(code == Some(0) && said.starts_with(owner), "{said}");
    assert!(said.contains("Service kube-system/kube-dns"), "{said}");
    let (code, said) = host.mizzen(&["dns", "silent.example.org"]);
    assert!(code == Some(3) && said.contains("no upstream resolver answered in time"), "{said}");
    assert!(said.contains("from     zone ., which asks 172.30.0.200:53: no answer\n"), "{said}");
    let (_, said) = host.mizzen(&["dns", "silent.example.org"]);
    assert!(said.contains("s ago none of 172.30.0.200:53 answered"), "{said}");
}

#[test]
fn of_two_upstreams_the_one_that_answered_is_named() {
    let field = Field::new();
    let [host, other] = &field.hosts;
    for family in FAMILIES {
        let (deaf, live) = (family.wire(UPSTREAM - 1), family.wire(UPSTREAM));
        let length = if family == Family::V4 { "24" } else { "64 nodad" };
        other.node.netns.ip(&format!("addr add {live}/{length} dev eth0"));
        let _live = Upstream::start(&other.node.netns, &[live]);
        let folder = tempfile::tempdir().unwrap();
        let corefile = folder.path().join("Corefile");
        let text = format!(
            ". {{\nkubernetes cluster.local\nforward . {deaf} {live} {{\npolicy sequential\n}}\n\
             cache\nrewrite name exact old.example.com www.example.org\n}}\n"
        );
        std::fs::write(&corefile, text).unwrap();
        let _agent = field.agent(host, &["--corefile", corefile.to_str().unwrap()]);
        let named = std::net::SocketAddr::new(live, 53);
        // Through the steps of a block, too.
        let (code, said) = host.mizzen(&["dns", "old.example.com"]);
        let upstream = format!("from     www.example.org.: upstream {named} (zone .)\n");
        assert!(code == Some(0) && said.contains(&upstream), "{said}");
        let (code, said) = host.mizzen(&["dns", "www.example.org"]);
        assert!(code == Some(0) && said.contains(&format!("s ago {named} said so")), "{said}");
    }
}

#[test]
fn steps_of_a_server_block_are_named_where_they_did_something() {
    let field = Field::new();
    let host = &field.hosts[0];
    let folder = tempfile::tempdir().unwrap();
    let corefile = folder.path().join("Corefile");
    let text = ". {\nkubernetes cluster.local\nforward . 172.30.0.200\n\
                rewrite name exact old.example.com web.default.svc.cluster.local\n\
                template IN A made.example {\n answer \"{{ .Name }} 60 IN A 192.0.2.7\"\n}\n\
                acl {\n block type TXT net *\n drop type MX net *\n}\n}\n";
    std::fs::write(&corefile, text).unwrap();
    let _agent = field.agent(host, &["--corefile", corefile.to_str().unwrap()]);
    let web = "the cluster's names (cluster.local.): Service default/web\n";

    let (code, said) = host.mizzen(&["dns", "old.example.com"]);
    let rewritten = "from     rewrite: web.default.svc.cluster.local. A is asked in its place\n";
    assert!(code == Some(0) && said.contains(rewritten), "{said}");
    assert!(said.contains(&format!("from     web.default.svc.cluster.local.: {web}")), "{said}");
    assert!(!said.contains("172.30.0.200"), "no upstream has a part in it: {said}");
    let (code, said) = host.mizzen(&["dns", "a.made.example"]);
    assert!(
        code == Some(0) && said.contains("from     template: the answer is written\n"),
        "{said}"
    );
    assert_eq!(said.matches("from ").count(), 1, "{said}");
    let (code, said) = host.mizzen(&["dns", "www.example.org", "--type", "TXT"]);
    assert!(code == Some(3) && said.contains("REFUSED"), "{said}");
    assert!(said.contains("from     acl: refused\n") && !said.contains("zone"), "{said}");
    let (code, said) = host.mizzen(&["dns", "www.example.org", "--type", "MX"]);
    assert!(code == Some(3) && said.contains("from     acl: no answer is given\n"), "{said}");
    let (code, said) = host.mizzen(&["dns", NAME]);
    assert!(code == Some(0) && said.contains(&format!("from     {web}")), "no step: {said}");
}
