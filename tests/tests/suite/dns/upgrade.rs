//! From one agent to the next, where something comes between.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
};

use mizzen_tests::{
    lab::{FAMILIES, Family},
    wait,
};
use nix::sys::signal::Signal;

use super::{
    encrypted::{Certificate, Line},
    field::{Agent, Field, Host, LIMIT, NAME, UPSTREAM, binary, dns},
    overload::question,
    site::{NODE_LOCAL, dig},
    upstream::Upstream,
};

/// Begins an agent that finds no API server: there is none where it is told, and it has no folder
/// that others have left addresses in.
pub(super) fn begin_without_server(field: &Field, host: &Host) -> Agent {
    let data = host.state().join("data-of-its-own");
    let data = data.to_str().unwrap();
    field.begin(host, &["--api-server", "https://172.30.0.99:6443", "--data-dir", data])
}

fn answers(host: &Host, family: Family, by: &str) -> String {
    dig(&host.pod, &format!("@{} {by} {NAME}", dns(family).ip()))
}

fn all_answered(host: &Host) {
    for family in FAMILIES {
        for by in ["+notcp", "+tcp"] {
            let said = answers(host, family, by);
            assert!(said.contains("status: NOERROR") && said.contains("ANSWER: 1"), "{said}");
        }
    }
}

#[test]
fn a_hand_over_that_comes_to_nothing_leaves_the_running_agent_as_it_was() {
    let field = Field::new();
    let host = &field.hosts[0];
    let mut agent = field.agent(host, &[]);

    let mut other = field.begin(host, &["--cluster-domain", "other", "--bpffs", "/nowhere"]);
    assert!(!other.ended().success());
    let why = "does not hand over: it is the agent of node node-1 with pins in";
    assert!(other.log().contains(why), "{}", other.log());
    all_answered(host);

    for said in ["", "\0\0\0\x02{}", "GET / HTTP/1.1\r\n\r\n", "\u{7f}\u{7f}\u{7f}\u{7f}"] {
        let mut stream = UnixStream::connect(host.state().join("agent.sock")).unwrap();
        let request = "GET /v1/handover HTTP/1.1\r\nHost: agent\r\nConnection: upgrade\r\nUpgrade: \
                       mizzen-handover\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 101", "{said:?}");
        stream.write_all(said.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // It closes at last, so that the next one finds its place free.
        let _closed = stream.read_to_end(&mut Vec::new());
        all_answered(host);
    }

    // It has the sockets, can't learn the cluster, and is killed.
    let waits = begin_without_server(&field, host);
    agent.until_logged("another agent has the sockets");
    let mut third = field.begin(host, &[]);
    assert!(!third.ended().success());
    assert!(third.log().contains("another agent has asked for it before"), "{}", third.log());
    all_answered(host);
    drop(waits);
    agent.until_logged("a hand-over came to nothing; this agent goes on error=the agent with pid");
    all_answered(host);

    let next = field.agent_after(host, &mut agent);
    all_answered(host);
    drop(next);
}

#[test]
fn an_agent_that_stops_while_another_waits_gives_nothing_up() {
    let field = Field::new();
    let [host, other] = &field.hosts;
    let stopped_by = |signal, known: &str| {
        let mut agent = field.agent(host, &[]);
        let waits = begin_without_server(&field, host);
        agent.until_logged("another agent has the sockets");
        waits.until_logged(known);
        agent.signal(signal);
        agent.ended();
        waits.until_logged("this agent serves by the sockets of the one before");
        waits
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let _waits = stopped_by(signal, "no other node's resolver answers");
        // It knows no Service yet, and where nobody else does it says so.
        none_is_known(host);
    }
    let _other = field.agent(other, &[]);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let _waits = stopped_by(signal, OTHERS_ANSWER);
        all_answered(host);
    }
}

/// What an agent logs that leaves its clients to others.
pub(super) const OTHERS_ANSWER: &str =
    "other nodes' resolvers answer until this one knows the cluster";

/// Each way leads to a resolver that says that it does not know the cluster.
fn none_is_known(host: &Host) {
    for family in FAMILIES {
        for by in ["+notcp", "+tcp"] {
            let said = answers(host, family, by);
            assert!(said.contains("EDE: 14 (Not Ready)"), "{said}");
        }
    }
}

/// Killed, started again, and no API server: as long as the other node's resolver answers it has the
/// clients, and when it does not they hear from this one that it knows nothing.
#[test]
fn who_can_not_learn_the_cluster_leaves_its_clients_to_others_as_long_as_they_answer() {
    let mut field = Field::new();
    let [mut agent, other] = [0, 1].map(|place| field.agent(&field.hosts[place], &[]));
    field.stop_server();
    let host = &field.hosts[0];
    agent.signal(Signal::SIGKILL);
    agent.ended();
    let again = field.begin(host, &[]);
    again.until_logged(OTHERS_ANSWER);
    all_answered(host);
    until_status(host, "other nodes' resolvers answer until then");
    let until = |text: &str| {
        wait::until(text, LIMIT, || match answers(host, Family::V4, "+time=1 +notcp") {
            said if said.contains(text) => Ok(()),
            said => Err(format!("{said}\n{}", again.log())),
        });
    };
    for _ in 0..2 {
        other.signal(Signal::SIGSTOP);
        until("EDE: 14 (Not Ready)");
        none_is_known(host);
        other.signal(Signal::SIGCONT);
        until("status: NOERROR");
        all_answered(host);
    }
}

#[test]
fn an_agent_that_can_not_hand_over_is_named() {
    let field = Field::new();
    let host = &field.hosts[0];
    let listener = UnixListener::bind(host.state().join("agent.sock")).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let _request = stream.read(&mut [0; 4096]).unwrap();
            stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").unwrap();
        });
        let mut agent = field.begin(host, &[]);
        assert!(!agent.ended().success());
        let why = "does not hand over: it is of a version that does not know of it; stop it first";
        assert!(agent.log().contains(why), "{}", agent.log());
    });
}

/// An agent that is told to stop answers what waits for slow upstreams. Meanwhile others are not
/// kept waiting: the other node answers them.
#[test]
fn dns_75_while_one_waits_for_an_upstream_in_the_end_others_are_answered_elsewhere() {
    let field = Field::new();
    let [host, other] = &field.hosts;
    let _other = field.agent(other, &[]);
    for family in FAMILIES {
        let mut agent = field.agent(host, &[]);
        let mut pod = host.in_pod();
        let question = format!("@{} slow.example.org A", dns(family).ip());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| dig(&host.pod, &question));
            agent.until_logged("upstream gave no answer");
            agent.signal(Signal::SIGTERM);
            agent.until_logged("clients are turned away");
            for kind in ["udp", "udp-kept", "tcp"] {
                let asked = pod.ask_name(kind, dns(family), NAME, 0);
                asked.unwrap_or_else(|error| panic!("{kind}: {error}\n{}", agent.log()));
            }
            assert!(agent.is_running(), "it waits: {}", agent.log());
            let said = waits.join().unwrap();
            assert!(said.contains("EDE: 22 (No Reachable Authority)"), "{said}");
        });
        assert!(agent.ended().success(), "{}", agent.log());
    }
}

/// Not where the agents look by themselves.
const NAMED: u8 = UPSTREAM + 1;

/// An upstream on the wire.
fn named_upstream(field: &Field) -> Upstream {
    for (family, length, nodad) in [(Family::V4, 24, ""), (Family::V6, 64, "nodad")] {
        field.wire.ip(&format!("addr add {}/{length} dev br0 {nodad}", family.wire(NAMED)));
    }
    Upstream::start(&field.wire, &FAMILIES.map(|family| family.wire(NAMED)))
}

/// A Corefile with these lines, which sends names outside there.
fn corefile(more: &str) -> String {
    let upstreams = FAMILIES.map(|family| family.wire(NAMED).to_string()).join(" ");
    format!(".:53 {{\nkubernetes cluster.local\nforward . {upstreams}\ncache 30\n{more}\n}}\n")
}

/// What is answered by each way, to names that nobody has asked for before.
fn foreign_names_are_answered(host: &Host, place: usize) {
    for family in FAMILIES {
        for by in ["+notcp", "+tcp"] {
            let name = format!("any-{place}{}-{family:?}.example.org", by.replace('+', "-"));
            let said = dig(&host.pod, &format!("@{} {by} +short {name} A", dns(family).ip()));
            assert_eq!(said, "192.0.2.80\n", "{name} {family:?}");
        }
    }
}

/// Waits until `mizzen status` says this of the agent.
fn until_status(host: &Host, text: &str) -> String {
    wait::until(text, LIMIT, || match host.mizzen(&["status"]) {
        (_, said) if said.contains(text) => Ok(said),
        (_, said) => Err(said),
    })
}

/// Who begins while the file is bad goes on with what the agent before it had, also where that was
/// killed.
#[test]
fn a_bad_corefile_leaves_the_old_one_in_force_in_the_next_agent() {
    let field = Field::new();
    let host = &field.hosts[0];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Corefile");
    let good = corefile("");
    let _upstream = named_upstream(&field);
    std::fs::write(&path, &good).unwrap();
    let flags = ["--corefile", path.to_str().unwrap()];
    let mut agent = field.agent(host, &flags);
    foreign_names_are_answered(host, 0);
    std::fs::write(&path, corefile("route53 a b")).unwrap();
    for (place, hand_over) in [(1, true), (2, false)] {
        let mut before = agent;
        if !hand_over {
            before.signal(Signal::SIGKILL);
            before.ended();
        }
        agent = field.begin(host, &flags);
        if hand_over {
            assert!(before.ended().success(), "{}", before.log());
        }
        let said = until_status(host, "what it said when it could last be used is in force");
        assert!(said.contains("\"route53\" is not supported"), "{said}");
        foreign_names_are_answered(host, place);
        all_answered(host);
        assert_eq!(host.metric("coredns_reload_failed_total"), "1", "{said}");
    }
    std::fs::write(&path, &good).unwrap();
    agent.until_ready(host);
}

/// Who knows nobody to ask for names outside relieves nobody that does.
#[test]
fn an_agent_that_can_use_no_corefile_waits_and_relieves_nobody() {
    let field = Field::new();
    let host = &field.hosts[0];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Corefile");
    let good = corefile("");
    let _upstream = named_upstream(&field);
    std::fs::write(&path, &good).unwrap();
    let mut agent = field.agent(host, &["--corefile", path.to_str().unwrap()]);
    std::fs::write(&path, corefile("route53 a b")).unwrap();
    // What the running one keeps, this one does not see.
    let data = host.state().join("data-of-its-own");
    let flags = ["--corefile", path.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
    let next = field.begin(host, &flags);
    // The only thing that it waits for: it knows the cluster.
    next.until_logged(&format!("reason=\"{}:", path.display()));
    assert!(next.log().contains("nothing that it says is in force"), "{}", next.log());
    foreign_names_are_answered(host, 0);
    assert!(agent.is_running(), "{}", agent.log());
    std::fs::write(&path, &good).unwrap();
    assert!(agent.ended().success(), "{}", agent.log());
    next.until_ready(host);
    foreign_names_are_answered(host, 1);
    drop(next);

    // Killed, and nobody is there before it: it says what it waits for.
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::write(&path, corefile("route53 a b")).unwrap();
    let alone = field.begin(host, &flags);
    alone.until_logged("nothing that it says is in force");
    let said = until_status(host, "nothing that it says is in force");
    assert!(said.contains("\"route53\" is not supported"), "{said}");
    let mut ready = host.node.netns.command(&binary("mizzen-agent"));
    let ready = ready.arg("ready").arg("--state-dir").arg(host.state()).output().unwrap();
    let why = String::from_utf8_lossy(&ready.stderr);
    assert!(!ready.status.success() && why.contains("dns waits"), "{why}");
    std::fs::write(&path, &good).unwrap();
    alone.until_ready(host);
    foreign_names_are_answered(host, 2);
}

/// Its keys are the old agent's own: a connection over TLS ends in order, between two questions, and
/// the next one finds the listener where it was.
#[test]
fn dns_73_clients_over_tls_are_answered_through_a_hand_over() {
    let field = Field::new();
    let host = &field.hosts[0];
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::of(&["dns.example"]);
    certificate.write(folder.path(), "server");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (pem, key, corefile) = (at("server.pem"), at("server.key"), at("Corefile"));
    let text = format!(".:53 tls://.:853 {{\nkubernetes cluster.local\ntls {pem} {key}\n}}\n");
    std::fs::write(&corefile, text).unwrap();
    let flags = ["--corefile", &corefile];
    let mut agent = field.agent(host, &flags);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (told, at_rest) = std::sync::mpsc::channel();
        let clients = NODE_LOCAL.map(|server| {
            let (certificate, done, told) = (&certificate, &done, told.clone());
            scope.spawn(move || {
                host.pod.run(|| {
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_all().build();
                    runtime.unwrap().block_on(clients_over_tls(server, certificate, done, &told))
                })
            })
        });
        let end = Done(&done);
        for _ in 0..2 {
            // One that is at rest, and one that asks again and again.
            (0..NODE_LOCAL.len()).for_each(|_| at_rest.recv_timeout(LIMIT).unwrap());
            agent = field.agent_after_with(host, &mut agent, &flags);
        }
        drop(end);
        for client in clients {
            let (asked, closed) = client.join().unwrap();
            assert!(asked > 2 && closed >= 2, "{asked} {closed}");
        }
    });
}

/// Says at its end, also when a test fails, that clients are to end.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How many questions were asked, each on a connection of its own, and how many connections at rest
/// the server closed.
async fn clients_over_tls(
    server: &str,
    certificate: &Certificate,
    done: &AtomicBool,
    told: &Sender<()>,
) -> (usize, usize) {
    let question = question(7, NAME);
    let ask = async || {
        let mut line = Line::open(server, certificate).await.unwrap();
        assert_eq!(line.ask(&question).await.unwrap().answers.len(), 1);
        line
    };
    let (mut asked, mut closed) = (0, 0);
    let mut at_rest = ask().await;
    told.send(()).unwrap();
    while !done.load(Ordering::Relaxed) {
        tokio::select! {
            biased;
            end = at_rest.until_closed() => {
                end.unwrap();
                closed += 1;
                at_rest = ask().await;
                let _enough = told.send(());
            }
            // Not cut off: a question that has begun is answered.
            () = std::future::ready(()) => {
                asked += 1;
                let _line = ask().await;
            }
        }
    }
    (asked, closed)
}
