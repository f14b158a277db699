//! Names in questions, and what they lead to.

use std::net::SocketAddr;

use super::{
    super::resolve::{Case, Names, ResolveError, cases},
    *,
};

/// The cases of a question, as `client > destination`.
fn ask(source: &str, destination: &str) -> Result<Vec<String>, ResolveError> {
    let (live, snapshot) = (memory(false), snapshot());
    let pods = [(ObjectKey::new("default", "client"), vec![ip(POD), ip("fd00:244::9")])].into();
    let names = Names { node: "a", snapshot: &snapshot, pods: &pods };
    let cases = cases(&live, &names, &source.parse().unwrap(), &destination.parse().unwrap())?;
    let text = |case: &Case| {
        let Case { client, dialled, .. } = case;
        let here = if client.here { "" } else { " elsewhere" };
        let at = SocketAddr::from((IpAddr::from(dialled.addr), dialled.port));
        format!("{}{here} > {at}/{}", client.addr, dialled.protocol)
    };
    Ok(cases.iter().map(text).collect())
}

#[test]
fn names_lead_to_addresses() {
    let asked = |source, destination| ask(source, destination).unwrap();
    let both = ["10.244.0.9 > 10.96.0.7:80/6", "fd00:244::9 elsewhere > [fd00:96::7]:80/6"];
    assert_eq!(asked("default/client", "default/web"), both, "TCP goes first");
    assert_eq!(asked("default/client", "default/web:http"), both);
    assert_eq!(asked(OUTSIDE, "default/web:53"), ["198.51.100.7 elsewhere > 10.96.0.7:53/17"]);
    assert_eq!(asked("node", "default/web:80")[0], "192.0.2.1 > 10.96.0.7:80/6");
    assert_eq!(asked("default/web-1", "default/web:80"), ["10.244.1.5 elsewhere > 10.96.0.7:80/6"]);
    assert_eq!(asked("10.244.0.77", "192.0.2.1:30080/udp"), ["10.244.0.77 > 192.0.2.1:30080/17"]);
}

#[test]
fn names_that_lead_nowhere_are_told_with_the_remedy() {
    let refused = |source, destination| ask(source, destination).unwrap_err().to_string();
    assert!(refused("default/nobody", "default/web").contains("give its address"));
    assert!(refused(POD, "default/nothing").contains("no service default/nothing"));
    assert!(refused(POD, "default/headless").contains("its endpoints"));
    assert!(refused(POD, "default/alias").contains("another name"));
    assert!(refused(POD, "default/web:99").contains("http:80/TCP, dns:53/UDP"));
    assert!(refused(POD, "default/local:81").ends_with("it has 80/TCP"));
    assert!(refused(POD, "default/web:http/udp").contains("no such port"));
    assert!(refused(POD, "[fd00:96::7]:80").contains("family"));
}
