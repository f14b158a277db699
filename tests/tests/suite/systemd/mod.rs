//! `deploy/mizzen-agent.service` under a real systemd, which confines the agent as the unit says: it
//! serves, and keeps its DNS sockets over a restart. Needs root.
//!
//! systemd is the first process of a machine in a machine (`boot.sh`), with the node's network: nothing
//! of the machine around it is its to change.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use mizzen_tests::{
    actor::Actor,
    echo::{Echo, Transport, ask},
    lab::{FAMILIES, Family, POD_PORT},
    wait,
};
use serde_json::Value;

use super::{
    dns::field::{Field, Host, LIMIT, METRICS, NAME, binary, dns, on},
    migrate::shop,
};

/// The unit.
const UNIT: &str = "mizzen-agent.service";
/// Targets that the unit and systemd itself ask for; there is nothing in them.
const TARGETS: [&str; 6] =
    ["basic", "sysinit", "shutdown", "multi-user", "network-online", "umount"];
/// Begins all namespaces but that of cgroups.
const NAMESPACES: [&str; 6] = ["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"];
/// Has the first process alone enter the cgroup, whose namespace's root it becomes: one from outside
/// would be a process of the node that the agent can't see.
const ENTER: &str = "echo 0 > \"$0/cgroup.procs\"; exec unshare --cgroup sh \"$@\"";

/// A machine that systemd runs; it ends with the guard.
struct Machine<'a> {
    host: &'a Host,
    child: Child,
    folder: tempfile::TempDir,
}

fn cgroup(host: &Host) -> PathBuf {
    host.node.options().cgroup_root.unwrap()
}

impl<'a> Machine<'a> {
    fn boot(field: &'a Field, host: &'a Host) -> Self {
        let folder = tempfile::Builder::new().prefix("mzt-").tempdir().unwrap();
        let [root, units, etc] = ["root", "units", "etc"].map(|name| folder.path().join(name));
        let drop_in = etc.join(format!("systemd/system/{UNIT}.d"));
        for path in [&root, &units, &etc.join("mizzen"), &drop_in] {
            fs::create_dir_all(path).unwrap();
        }
        fs::copy(xtask::checkout().join("deploy").join(UNIT), units.join(UNIT)).unwrap();
        for target in TARGETS {
            let text = "[Unit]\nDescription=Nothing\nDefaultDependencies=no\n";
            fs::write(units.join(format!("{target}.target")), text).unwrap();
        }
        // There is no journal.
        let log = "[Service]\nStandardOutput=append:/run/log\nStandardError=append:/run/log\n";
        fs::write(drop_in.join("log.conf"), log).unwrap();
        fs::write(etc.join("hostname"), "node-1\n").unwrap();
        fs::copy(&field.kubeconfig, etc.join("mizzen/kubeconfig")).unwrap();
        let config = "apiVersion: mizzen.dev/v1alpha1\nkind: AgentConfiguration\n\
                      kubeconfig: /etc/mizzen/kubeconfig\ncni: false\ndnsUpstream: [172.30.0.200]\n";
        fs::write(etc.join("mizzen/agent.yaml"), config).unwrap();

        let script = xtask::checkout().join("tests/tests/suite/systemd/boot.sh");
        let binaries = Path::new(&binary("mizzen-agent")).parent().unwrap().to_owned();
        let mut command = host.node.netns.command("unshare");
        command
            .args(NAMESPACES)
            .args(["sh", "-c", ENTER])
            .arg(cgroup(host))
            .arg(script)
            .args([root, binaries, units, etc]);
        let log = fs::File::create(folder.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let machine = Self { host, child: command.spawn().unwrap(), folder };
        wait::until("systemd to answer", LIMIT, || {
            let (is_well, said) = machine.systemctl(&["is-active", "basic.target"]);
            if is_well { Ok(()) } else { Err(format!("{said} {}", machine.log())) }
        });
        machine
    }

    /// What systemd and the scripts before it said.
    fn log(&self) -> String {
        let agents = self.processes("init.scope").first().map(|systemd| {
            fs::read_to_string(format!("/proc/{systemd}/root/run/log")).unwrap_or_default()
        });
        let own = fs::read_to_string(self.folder.path().join("log")).unwrap();
        own + &agents.unwrap_or_default()
    }

    /// The processes of a part of it.
    fn processes(&self, part: &str) -> Vec<u32> {
        let path = cgroup(self.host).join(part).join("cgroup.procs");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Whether `systemctl` succeeds in the machine, and what it says.
    fn systemctl(&self, words: &[&str]) -> (bool, String) {
        let Some(systemd) = self.processes("init.scope").first().copied() else {
            return (false, "there is no systemd yet".to_owned());
        };
        let target = format!("--target={systemd}");
        let mut command = Command::new("timeout");
        command.args(["60", "nsenter", &target, "--mount", "--pid", "--cgroup", "--"]);
        let output = command.arg("/usr/bin/systemctl").args(words).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    /// The same, which has to succeed.
    fn must(&self, words: &[&str]) -> String {
        let (succeeded, said) = self.systemctl(words);
        assert!(succeeded, "{words:?}: {said} {}", self.log());
        said
    }

    /// The agent's process, as the machine around knows it.
    fn agent(&self) -> u32 {
        let processes = self.processes(&format!("system.slice/{UNIT}"));
        let [agent] = processes[..] else { panic!("{processes:?} {}", self.log()) };
        agent
    }

    /// `mizzen status` on the node.
    fn status(&self) -> Value {
        let state = format!("/proc/{}/root/run/mizzen", self.agent());
        let mut command = self.host.node.netns.command(&binary("mizzen"));
        let output =
            command.args(["--state-dir", &state, "status", "-o", "json"]).output().unwrap();
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{output:?} {}", self.log()))
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // With the first process go all of them.
        let _gone = (self.child.kill(), self.child.wait());
        let root = cgroup(self.host);
        let _killed = fs::write(root.join("cgroup.kill"), "1");
        let deadline = Instant::now() + LIMIT;
        while !remove_below(&root) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Removes all cgroups below one; whether none is left.
fn remove_below(cgroup: &Path) -> bool {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let inside = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let paths: Vec<_> = inside.map(|entry| entry.path()).collect();
    paths.iter().all(|path| remove_below(path) && fs::remove_dir(path).is_ok())
}

/// The values of a setting of the unit, which may be there several times.
fn unit(setting: &str) -> Vec<String> {
    let text = fs::read_to_string(xtask::checkout().join("deploy").join(UNIT)).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix(setting)?.strip_prefix('='));
    let words: Vec<_> = lines.flat_map(str::split_whitespace).map(str::to_owned).collect();
    assert!(!words.is_empty(), "no {setting} in {text}");
    words
}

/// Its number (`linux/capability.h`).
fn capability(name: &str) -> u64 {
    match name {
        "CAP_DAC_READ_SEARCH" => 2,
        "CAP_NET_BIND_SERVICE" => 10,
        "CAP_NET_ADMIN" => 12,
        "CAP_SYS_PTRACE" => 19,
        "CAP_SYS_ADMIN" => 21,
        "CAP_SYS_RESOURCE" => 24,
        other => panic!("what is the number of {other}?"),
    }
}

/// A field of `/proc/PID/status`.
fn field_of<'s>(status: &'s str, name: &str) -> &'s str {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
}

/// A set of capabilities there.
fn capabilities(status: &str, set: &str) -> u64 {
    u64::from_str_radix(field_of(status, set), 16).unwrap()
}

/// How many files a process may open, and how many it may be given: of `/proc/PID/limits`.
fn open_files(limits: &str) -> [u64; 2] {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut numbers = line.split_whitespace().map(|word| word.parse().unwrap_or(u64::MAX));
    [(); 2].map(|()| numbers.next().unwrap())
}

/// That systemd understood the unit's list of rights, which the agent would keep to by itself.
fn is_bound(machine: &Machine<'_>) {
    let said = machine.must(&["show", UNIT, "--property=CapabilityBoundingSet", "--value"]);
    let bound: BTreeSet<_> = said.split_whitespace().map(str::to_uppercase).collect();
    assert_eq!(bound, unit("CapabilityBoundingSet").into_iter().collect(), "{said}");
}

/// That the kernel confines the process as the unit says.
fn is_confined(agent: u32, log: &str) {
    let read = |file: &str| fs::read_to_string(format!("/proc/{agent}/{file}")).unwrap();
    let status = read("status");
    let of = |name| field_of(&status, name);
    let named = unit("CapabilityBoundingSet");
    let named: u64 = named.iter().map(|name| 1 << capability(name)).sum();
    for set in ["CapBnd:", "CapEff:", "CapPrm:"] {
        assert_eq!(capabilities(&status, set), named, "{set} {status}");
    }
    assert_eq!((unit("NoNewPrivileges"), of("NoNewPrivs:")), (vec!["yes".into()], "1"));
    // By filters: address families, personality, real time, set-user-ID files, clocks, modules.
    for setting in ["RestrictAddressFamilies", "LockPersonality", "SystemCallArchitectures"] {
        assert!(!unit(setting).is_empty());
    }
    assert_eq!(of("Seccomp:"), "2", "{log}");
    // What a machine of fewer rights may not have, as most containers, systemd leaves as it is.
    let own = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).unwrap();
    let may_have =
        capabilities(&own("status"), "CapEff:") & 1 << capability("CAP_SYS_RESOURCE") != 0;
    let adjust = if may_have { unit("OOMScoreAdjust").remove(0) } else { own("oom_score_adj") };
    assert_eq!(read("oom_score_adj").trim(), adjust.trim());
    let mut files: u64 = unit("LimitNOFILE")[0].parse().unwrap();
    if !may_have {
        files = files.min(open_files(&own("limits"))[1]);
    }
    assert_eq!(open_files(&read("limits")), [files; 2]);
    // What it may not write or see.
    let mounts = read("mountinfo");
    let has = |point: &str, option: &str| {
        mounts.lines().any(|line| {
            let words: Vec<_> = line.split(' ').collect();
            words[4] == point && words[5].split(',').any(|word| word == option)
        })
    };
    for setting in ["ProtectSystem", "ProtectHome", "PrivateTmp"] {
        assert_eq!(unit(setting), ["yes"], "{setting}");
    }
    for (point, option) in
        [("/usr", "ro"), ("/boot", "ro"), ("/home", "ro"), ("/root", "ro"), ("/tmp", "rw")]
    {
        assert!(has(point, option), "{point} {option}: {mounts}");
    }
    let sees = |path: &str| fs::read_dir(format!("/proc/{agent}/root{path}")).unwrap().count();
    assert_eq!(sees("/home"), 0);
}

/// Numbers of the sockets at the cluster DNS addresses' port that the process has.
fn dns_sockets(host: &Host, agent: u32) -> BTreeSet<String> {
    let of_port = |file: &str| {
        let text = fs::read_to_string(format!("/proc/{agent}/net/{file}")).unwrap();
        let rows = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        // Those that anyone may reach, and not the connections of some.
        let open = |row: &&Vec<&str>| row[1].ends_with(":0035") && ["07", "0A"].contains(&row[3]);
        let rows: Vec<_> = rows.collect();
        let inodes = rows.iter().filter(open).map(|row| row[9].to_owned());
        inodes.collect::<Vec<_>>()
    };
    let listening = ["udp", "udp6", "tcp", "tcp6"].map(of_port).concat();
    let descriptors = fs::read_dir(format!("/proc/{agent}/fd")).unwrap().flatten();
    let targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    let own: BTreeSet<_> = targets.map(|target| target.display().to_string()).collect();
    let named = listening.into_iter().map(|inode| format!("socket:[{inode}]"));
    let found: BTreeSet<_> = named.filter(|socket| own.contains(socket)).collect();
    assert!(found.len() >= 2 * FAMILIES.len(), "{found:?} on {}", host.node.netns.name());
    found
}

/// A Service and a name, for processes of the node.
fn serves(host: &Host, vips: [SocketAddr; 2], log: impl Fn() -> String) {
    let pods = cgroup(host).join("pods");
    fs::create_dir_all(&pods).unwrap();
    let mut process = Actor::start(&host.node.netns, &pods);
    for (family, vip) in FAMILIES.into_iter().zip(vips) {
        wait::until("the Service to answer", LIMIT, || {
            let asked = ask(&host.pod, Transport::Tcp, vip);
            asked.map(drop).map_err(|error| format!("{error} {}", log()))
        });
        for kind in ["tcp", "udp"] {
            let number = if vip.is_ipv4() { "4" } else { "6" };
            let socket = process.open(&format!("{kind}{number}"));
            process.connect(socket, vip).unwrap();
            process.send(socket, "?");
            assert!(process.receive(socket).starts_with("pod-2 "), "{kind} {vip}");
            process.ask_name(kind, dns(family), NAME, 1).unwrap();
        }
    }
}

#[test]
fn the_unit_serves_as_systemd_confines_it_and_keeps_its_sockets_over_a_restart() {
    let field = Field::new();
    let [host, other] = &field.hosts;
    let serve = |family: &Family| {
        Echo::start(&other.pod, SocketAddr::new(family.pod(2, 7), POD_PORT), "pod-2")
    };
    let _servers: Vec<_> = FAMILIES.iter().map(serve).collect();
    let machine = Machine::boot(&field, host);
    // It returns when the agent has said that it serves.
    machine.must(&["start", UNIT]);
    let client = field.client.clone();
    let vips = on(&field.runtime, async move { shop(&client).await });
    serves(host, vips, || machine.log());
    let agent = machine.agent();
    is_bound(&machine);
    is_confined(agent, &machine.log());
    wait::until("the node to be healthy", LIMIT, || match machine.status() {
        status if status["healthy"] == true && status["node"] == "node-1" => Ok(()),
        status => Err(format!("{status} {}", machine.log())),
    });

    let before = dns_sockets(host, agent);
    machine.must(&["restart", UNIT]);
    let next = machine.agent();
    assert_ne!(next, agent);
    assert_eq!(dns_sockets(host, next), before, "systemd kept them: {}", machine.log());
    serves(host, vips, || machine.log());
    assert!(matches!(host.http(METRICS, "/readyz"), Ok((200, _))), "{}", machine.log());

    // Killed, it is started again.
    let pid = nix::unistd::Pid::from_raw(next.cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    wait::until("another agent", LIMIT, || match machine.systemctl(&["is-active", UNIT]) {
        (true, _) if matches!(machine.processes(&format!("system.slice/{UNIT}"))[..], [now] if now != next) => {
            Ok(())
        }
        other => Err(format!("{other:?} {}", machine.log())),
    });
    serves(host, vips, || machine.log());
    machine.must(&["stop", UNIT]);
}
