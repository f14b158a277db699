//! What a container's root is made of, by what the container asks for.

use super::*;
use crate::node::runtime::{PodIdentity, Privileges, Termination};

fn sandbox(host_ipc: bool, hostname: Option<&str>) -> Record {
    let pod = PodIdentity { namespace: "ns".into(), name: "web".into(), uid: "u".into() };
    Record {
        id: "s".into(),
        pod,
        attempt: 0,
        created_at: k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
        hostname: hostname.map(str::to_owned),
        netns: None,
        host_ipc,
        cgroup: PathBuf::new(),
        logs: PathBuf::new(),
        volumes: PathBuf::new(),
    }
}

fn planned(config: &ContainerConfig) -> Vec<Step> {
    planned_in(config, &sandbox(false, Some("web")), "/bin/sh")
}

fn planned_in(config: &ContainerConfig, sandbox: &Record, program: &str) -> Vec<Step> {
    let machine = machine::mounts(
        "1 0 0:1 / / rw - ext4 /dev/vda rw\n\
         2 1 0:2 / /usr rw - ext4 /dev/vdb rw\n\
         3 1 0:3 / /work rw - ext4 /dev/vdc rw\n",
    );
    let around = Surroundings {
        sandbox,
        dir: Path::new("/state/sandboxes/s"),
        machine: &machine,
        hidden: &["/state".into(), "/run/mizzen".into(), "/usr/volumes".into()],
        program: Path::new(program),
        termination: Path::new("/state/sandboxes/s/termination/c"),
    };
    plan(config, around)
}

fn privileged() -> ContainerConfig {
    let privileges = Privileges { privileged: true, ..Privileges::default() };
    ContainerConfig { privileges, ..ContainerConfig::default() }
}

/// What is shown where, in order.
fn shown(steps: &[Step]) -> Vec<(&str, &str)> {
    let binds = steps.iter().filter_map(|step| match step {
        Step::Bind(bind) if !bind.target.starts_with("/dev") => Some(bind),
        _ => None,
    });
    binds.map(|bind| (bind.target.to_str().unwrap(), bind.source.to_str().unwrap())).collect()
}

fn position(steps: &[Step], is: impl Fn(&Step) -> bool) -> usize {
    steps.iter().position(is).unwrap()
}

#[test]
fn layers_come_first_and_hide_what_is_the_machines_own() {
    let steps = planned(&ContainerConfig::default());
    let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
    assert_eq!(
        steps[..3],
        [
            Step::Layer {
                lower: "/".into(),
                hidden: paths(&["run", "state", "tmp", "var/tmp"]),
                devices: false
            },
            Step::Layer { lower: "/usr".into(), hidden: paths(&["volumes"]), devices: false },
            Step::Enter,
        ]
    );
    assert!(matches!(steps[3], Step::New { kind: Kind::Proc, .. }), "binds need /proc: {steps:?}");
}

#[test]
fn volumes_come_when_the_root_is_entered_what_is_above_before_what_is_below() {
    let mount = |container_path: &str, host_path: &str, volume_path: &str| Mount {
        container_path: container_path.into(),
        host_path: host_path.into(),
        volume_path: volume_path.into(),
        read_only: false,
        propagation: Propagation::Private,
    };
    let config = ContainerConfig {
        mounts: vec![
            mount("/a/b/c", "/volumes/u/v/part", "/volumes/u/v"),
            mount("/a", "/host/a", "/host/a"),
            mount("/etc/hosts", "/host/hosts", "/host/hosts"),
        ],
        termination: Termination { path: "/a/why".into(), or_log: false },
        ..ContainerConfig::default()
    };
    let steps = planned(&config);
    assert_eq!(
        shown(&steps),
        [
            ("/a", "/host/a"),
            ("/etc/hosts", "/host/hosts"),
            ("/etc/resolv.conf", "/state/sandboxes/s/resolv.conf"),
            ("/a/why", "/state/sandboxes/s/termination/c"),
            ("/a/b/c", "/volumes/u/v"),
        ]
    );
    let part = steps.iter().find_map(|step| match step {
        Step::Bind(bind) if bind.target == Path::new("/a/b/c") => Some(bind),
        _ => None,
    });
    let part = part.unwrap();
    assert_eq!((part.inside.as_path(), part.devices), (Path::new("part"), false));
    assert!(!part.follows);
    let propagation = Propagation::HostToContainer;
    assert!(volume(&Mount { propagation, ..mount("/a", "/b", "/b") }, false).follows);
    let entered = position(&steps, |step| *step == Step::Enter);
    let left = position(&steps, |step| *step == Step::Leave);
    let binds = steps.iter().enumerate().filter(|(_, step)| matches!(step, Step::Bind(_)));
    assert!(binds.map(|(index, _)| index).all(|index| entered < index && index < left));
}

#[test]
fn a_program_that_would_not_be_seen_is_shown() {
    let is_shown = |program: &str| {
        let steps = planned_in(&ContainerConfig::default(), &sandbox(false, None), program);
        shown(&steps).contains(&(program, program))
    };
    for (program, wanted) in [
        ("/bin/sh", false),
        ("/usr/bin/env", false),
        ("sleep", false),
        ("./sleep", false),
        ("/work/target/mizzen", true),
        ("/tmp/script", true),
        ("/usr/volumes/x", true),
    ] {
        assert_eq!(is_shown(program), wanted, "{program}");
    }
}

#[test]
fn only_the_privileged_see_everything() {
    let masks = |steps: &[Step]| {
        steps
            .iter()
            .filter(|step| matches!(step, Step::Mask { .. } | Step::ReadOnly { .. }))
            .count()
    };
    let sys = |steps: &[Step]| {
        let found = steps.iter().find_map(|step| match step {
            Step::New { kind: Kind::Sysfs, read_only, .. } => Some(*read_only),
            _ => None,
        });
        found.unwrap()
    };
    let devices = |steps: &[Step]| {
        steps.iter().any(|step| matches!(step, Step::Layer { lower, devices: true, .. } if lower == Path::new("/dev")))
    };
    let facts = |steps: &[Step]| (masks(steps), sys(steps), devices(steps));
    let plain = planned(&ContainerConfig::default());
    assert_eq!(facts(&plain), (MASKED.len() + READ_ONLY.len(), true, false));
    assert_eq!(facts(&planned(&privileged())), (0, false, true));
    let privileges = Privileges { unmasked_proc: true, ..Privileges::default() };
    let unmasked = ContainerConfig { privileges, ..ContainerConfig::default() };
    assert_eq!(facts(&planned(&unmasked)), (0, true, false));
}

#[test]
fn a_read_only_root_is_closed_when_everything_is_in_it() {
    let privileges = Privileges { read_only_root: true, ..Privileges::default() };
    let working_dir = Some("/srv/app".to_owned());
    let steps = planned(&ContainerConfig { working_dir, privileges, ..ContainerConfig::default() });
    let closed = |target: &str| Step::ReadOnly { target: target.into(), mounted: true };
    let left = position(&steps, |step| *step == Step::Leave);
    assert_eq!(steps[left - 1], Step::Folder { target: "/srv/app".into() });
    assert_eq!(steps[left + 1..], [closed("/usr"), closed("/")]);
    let hosts = steps.iter().any(|step| {
        matches!(step, Step::Bind(bind) if bind.target == Path::new("/etc/hosts") && bind.read_only)
    });
    assert!(hosts, "the pod's hosts could be written to");
}

#[test]
fn shared_memory_and_names_are_the_pods_unless_they_are_the_nodes() {
    let of_pod =
        |steps: &[Step]| steps.iter().any(|step| matches!(step, Step::SharedMemory { .. }));
    let named = |steps: &[Step]| {
        let text = Step::Text { target: "/etc/hostname".into(), text: "web\n".into() };
        steps.contains(&text)
    };
    let pod = planned(&ContainerConfig::default());
    assert!(of_pod(&pod) && named(&pod));
    let node = planned_in(&ContainerConfig::default(), &sandbox(true, None), "");
    assert!(!of_pod(&node) && !named(&node));
}
