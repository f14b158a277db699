//! What the agent takes for the node's own addresses, and how it hears that they changed.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use mizzen_agent::{desired::NodeFacts, facts, status::Board};
use mizzen_tests::{
    lab::{FAMILIES, Family},
    netns::Netns,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a change may take to be heard.
const LIMIT: Duration = Duration::from_secs(20);

/// Follows the addresses of a namespace until they are as expected.
async fn until(facts: &mut watch::Receiver<Option<Arc<NodeFacts>>>, expected: &[IpAddr]) {
    let expected: BTreeSet<IpAddr> = expected.iter().copied().collect();
    let as_expected = |facts: &Option<Arc<NodeFacts>>| {
        let addresses = facts.iter().flat_map(|facts| &facts.addresses).map(|local| local.addr);
        facts.is_some() && addresses.collect::<BTreeSet<_>>() == expected
    };
    let heard = tokio::time::timeout(LIMIT, facts.wait_for(as_expected)).await.is_ok();
    assert!(heard, "{expected:?} instead of {:?}", *facts.borrow());
}

/// kube-proxy's ipvs mode leaves a device with the addresses of all services. They come and go while
/// the agent runs, the device with them.
#[test]
fn b61_r11_addresses_of_services_on_kube_proxys_device_are_not_the_nodes() {
    let netns = Netns::new("facts");
    let own: Vec<IpAddr> = FAMILIES.map(|family| family.wire(11)).into();
    let add = |device: &str, addr: IpAddr| {
        let length = if addr.is_ipv4() { "32" } else { "128 nodad" };
        let (length, nodad) = length.split_once(' ').unwrap_or((length, ""));
        netns.ip(&format!("addr add {addr}/{length} dev {device} {nodad}"));
    };
    let device = |name: &str| {
        netns.ip(&format!("link add {name} type bridge"));
        netns.ip(&format!("link set {name} up"));
    };
    device("uplink0");
    device("kube-ipvs0");
    for family in FAMILIES {
        add("uplink0", family.wire(11));
        add("kube-ipvs0", family.service(10));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    netns.run(|| {
        runtime.block_on(async {
            let (publish, mut facts) = watch::channel(None);
            let cancel = CancellationToken::new();
            let task = tokio::spawn(facts::run(publish, Arc::<Board>::default(), cancel.clone()));
            until(&mut facts, &own).await;
            let second = Family::V4.wire(77);
            add("kube-ipvs0", Family::V4.service(11));
            add("uplink0", second);
            let mut more = own.clone();
            more.push(second);
            until(&mut facts, &more).await;
            netns.ip("link del kube-ipvs0");
            netns.ip(&format!("addr del {second}/32 dev uplink0"));
            until(&mut facts, &own).await;
            cancel.cancel();
            task.await.unwrap().unwrap();
        });
    });
}
