//! Item 32: what a pod may receive and send, by real streams in both families.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use mizzen_agent::{
    datapath::Datapath,
    metrics::Metrics,
    podnet::datapath::{Announced, NoDatapath},
    released,
};
use mizzen_ebpf_abi::counters::Counter;
use mizzen_tests::{
    netns::{Netns, check},
    node::TestNode,
    wait::until,
};
use serde_json::{Value, json};

use super::bed::{LIMIT, Node, Outcome, Pod, addresses, model};

/// What the pod may receive, in bits per second.
const INGRESS: u32 = 24_000_000;
/// What it may send.
const EGRESS: u32 = 12_000_000;
/// Bits that may go at once: 16 KiB.
const BURST: u32 = 8 * 16_384;

fn limits() -> Value {
    json!({
        "ingressRate": INGRESS, "ingressBurst": BURST, "egressRate": EGRESS, "egressBurst": BURST,
    })
}

fn try_add(node: &Node, pod: &Pod, limits: Value) -> Outcome {
    let mut conf = node.conf("1.1.0");
    conf["runtimeConfig"]["bandwidth"] = limits;
    node.call_with("ADD", pod, &conf)
}

fn add(node: &Node, limits: Value) -> Pod {
    let mut pod = Pod::new();
    pod.addresses = addresses(&try_add(node, &pod, limits).expect_success());
    pod
}

/// The root qdiscs of a namespace's interfaces.
fn qdiscs(netns: &Netns) -> String {
    let output = check(netns.command("tc").args(["qdisc", "show"]));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Bits per second of its receiver's clock.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// Of all that came, the first apart.
    whole: f64,
    /// Of the best [`WINDOW`]: what this machine keeps the stream from when it has other things to do
    /// is not the bucket's matter.
    best: f64,
}

/// The burst is a small part of what comes in this time.
const WINDOW: Duration = Duration::from_millis(250);

/// The rate of a stream.
fn rate(from: &Netns, to: &Netns, address: IpAddr, octets: usize) -> Rate {
    let listener = to.run(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
    let server = listener.local_addr().unwrap();
    let mut sender = from.run(|| TcpStream::connect_timeout(&server, LIMIT)).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    sender.set_write_timeout(Some(LIMIT)).unwrap();
    receiver.set_read_timeout(Some(LIMIT)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || sender.write_all(&vec![0; octets]).unwrap());
        let mut buffer = vec![0; 64 << 10];
        let mut read = || loop {
            match receiver.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.unwrap(),
            }
        };
        let mut received = read();
        let mut came = vec![(Instant::now(), received)];
        while received < octets {
            let length = read();
            assert!(length > 0, "{received} of {octets} octets came");
            received += length;
            came.push((Instant::now(), received));
        }
        judged(&came)
    })
}

/// The rates of what had come at these times.
fn judged(came: &[(Instant, usize)]) -> Rate {
    let between = |(since, before): (Instant, usize), (until, after): (Instant, usize)| {
        #[expect(clippy::cast_precision_loss, reason = "a few million")]
        let bits = (8 * (after - before)) as f64;
        bits / (until - since).as_secs_f64()
    };
    let window = |(index, start): (usize, &(Instant, usize))| {
        let end = came[index..].iter().find(|(at, _)| *at - start.0 >= WINDOW)?;
        Some(between(*start, *end))
    };
    let best = came.iter().enumerate().filter_map(window).fold(0.0, f64::max);
    Rate { whole: between(came[0], came[came.len() - 1]), best }
}

/// A stream gets what was asked for within a tenth, headers included: never more, the burst apart, and
/// not less where this machine has time for it for a moment, in one of three attempts.
#[track_caller]
fn check_rate(from: &Netns, to: &Netns, address: IpAddr, asked: u32) {
    let octets = asked as usize / 8;
    let most = f64::from(asked) * 1.1 + f64::from(BURST);
    let mut measured = None;
    for _ in 0..3 {
        let rate = rate(from, to, address, octets);
        assert!(rate.whole < most, "{rate:.0?} bits per second of {asked}");
        if rate.best > f64::from(asked) * 0.9 {
            println!("{rate:.0?} bits per second of {asked}");
            return;
        }
        measured = Some(rate);
    }
    panic!("{measured:.0?} bits per second of {asked}");
}

#[test]
fn cni_32_a_pod_receives_and_sends_at_the_rates_that_were_asked_for() {
    let node = Node::alone();
    node.netns.ip("link add eth0 type bridge");
    node.netns.ip("link set eth0 up");
    for (address, nodad) in model("a", 1).internal_ips.iter().zip(["", "nodad"]) {
        node.netns.ip(&format!("addr add {address} dev eth0 {nodad}"));
    }
    let limited = add(&node, limits());
    // What is kept to is what was asked for; how near a stream comes to it is this machine's matter.
    let (host, said) = (node.pod_links().remove(0), qdiscs(&node.netns));
    let of_host = said.lines().find(|line| line.contains(&format!("dev {host} root")));
    assert!(of_host.is_some_and(|line| line.contains("rate 24Mbit burst 16Kb")), "{said}");
    let said = qdiscs(limited.netns());
    let of_pod = said.lines().find(|line| line.contains("dev eth0 root"));
    assert!(of_pod.is_some_and(|line| line.contains("rate 12Mbit burst 16Kb")), "{said}");
    let free = add(&node, Value::Null);
    for (own, other) in limited.addresses.iter().zip(&free.addresses) {
        check_rate(free.netns(), limited.netns(), *own, INGRESS);
        check_rate(limited.netns(), free.netns(), *other, EGRESS);
        // From the node as well.
        check_rate(&node.netns, limited.netns(), *own, INGRESS);
    }
}

#[test]
fn cni_32_one_direction_alone_leaves_the_other_as_it_is_and_del_takes_all_away() {
    let node = Node::alone();
    let ingress = add(&node, json!({"ingressRate": INGRESS, "ingressBurst": BURST}));
    let host = node.pod_links().remove(0);
    assert!(qdiscs(&node.netns).contains(&format!("dev {host} root")), "{}", qdiscs(&node.netns));
    assert!(!qdiscs(ingress.netns()).contains("tbf"));
    node.call("DEL", &ingress).expect_success();
    assert_eq!(node.pod_links(), [""; 0]);
    assert!(!qdiscs(&node.netns).contains("tbf"));
    let egress = add(&node, json!({"egressRate": EGRESS, "egressBurst": BURST}));
    let said = qdiscs(egress.netns());
    assert!(said.contains("qdisc tbf") && said.contains("rate 12Mbit burst 16Kb"), "{said}");
    assert!(!qdiscs(&node.netns).contains("tbf"));
    node.call("DEL", &egress).expect_success();
    assert_eq!(node.pod_links(), [""; 0]);
    assert!(!qdiscs(egress.netns()).contains("tbf"));
}

/// What waits in a queue is not put behind it by a program; and who takes the pod's own queue away is
/// held to its rate by the node, though no agent is there to mend that.
#[test]
fn cni_32_limits_hold_where_programs_deliver_and_who_takes_its_queue_away() {
    let place = TestNode::new("limits");
    let mut node = Node::new("a", &[model("a", 1)]);
    let datapath = node.netns.run(|| Datapath::open(&place.options())).unwrap();
    let pods = node.netns.run(|| datapath.pods()).unwrap();
    node.start_with(Arc::new(pods));
    node.wait_ready();
    let (limited, free) = (add(&node, limits()), add(&node, Value::Null));
    for (own, other) in limited.addresses.iter().zip(&free.addresses) {
        check_rate(free.netns(), limited.netns(), *own, INGRESS);
        check_rate(limited.netns(), free.netns(), *other, EGRESS);
    }
    let dropped = || datapath.counters().unwrap().get(Counter::DropPodRate).unwrap();
    assert_eq!(dropped(), 0, "its own queue holds it back, and loses nothing");
    node.stop();
    check(limited.netns().command("tc").args(["qdisc", "del", "dev", "eth0", "root"]));
    for address in &free.addresses {
        let measured = rate(limited.netns(), free.netns(), *address, EGRESS as usize / 8).whole;
        assert!(measured < f64::from(EGRESS) * 1.1 + f64::from(BURST), "{measured:.0} bits/s");
    }
    assert!(dropped() > 0);
    node.start_with(Arc::new(node.netns.run(|| datapath.pods()).unwrap()));
    node.wait_ready();
    node.call("DEL", &limited).expect_success();
    assert_eq!(node.pod_links().len(), 1);
}

/// Whether both ends are limited as [`limits`] say.
fn shaped(node: &Node, pod: &Pod) -> Result<(), String> {
    let (host_end, pod_end) = (qdiscs(&node.netns), qdiscs(pod.netns()));
    if host_end.contains("rate 24Mbit") && pod_end.contains("rate 12Mbit") {
        return Ok(());
    }
    Err(format!("{host_end}\n{pod_end}"))
}

#[test]
fn cni_32_cni_38_limits_outlive_the_agent_and_are_put_back_where_somebody_takes_them_away() {
    let mut node = Node::new("a", &[model("a", 1)]);
    let (released, _receiver) = released::channel();
    let metrics: Arc<Metrics> = Arc::default();
    let datapath = || Announced::new(Arc::new(NoDatapath), released.clone(), Arc::clone(&metrics));
    node.start_with(Arc::new(datapath()));
    node.wait_ready();
    let pod = add(&node, limits());
    node.stop();
    let host = node.pod_links().remove(0);
    shaped(&node, &pod).unwrap();
    check(node.netns.command("tc").args(["qdisc", "del", "dev", &host, "root"]));
    node.start_with(Arc::new(datapath()));
    node.wait_ready();
    node.call("CHECK", &pod).expect_code(101);
    check(pod.netns().command("tc").args([
        "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", "1gbit", "burst", "1mb",
        "latency", "10ms",
    ]));
    until("both limits to be back", LIMIT, || shaped(&node, &pod));
    until("both to be counted", LIMIT, || match metrics.tables.healed_of("bandwidth") {
        2 => Ok(()),
        other => Err(other.to_string()),
    });
    node.call("CHECK", &pod).expect_success();
}

#[test]
fn cni_17_cni_32_another_limit_is_another_interface() {
    let node = Node::alone();
    let pod = add(&node, limits());
    let link = || node.netns.ip(&format!("-o link show {}", node.pod_links()[0]));
    let before = link();
    try_add(&node, &pod, limits()).expect_success();
    assert_eq!(link(), before, "the same is the same");
    let slower = json!({"egressRate": EGRESS / 2, "egressBurst": BURST});
    try_add(&node, &pod, slower).expect_success();
    assert!(qdiscs(pod.netns()).contains("rate 6Mbit"), "{}", qdiscs(pod.netns()));
    assert!(!qdiscs(&node.netns).contains("tbf"));
}
