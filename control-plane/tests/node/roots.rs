//! What a container sees, may do and may use: its root, volumes, users, capabilities, limits.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    time::Duration,
};

use mizzen_control_plane::node::runtime::{
    ContainerConfig, ContainerState, Limits, Mount, Privileges, Runtime, Seccomp, Termination,
};

use crate::bed::{Node, mount, pod, shell, wait_for_log};

/// What can be told of a process from outside of it.
const STATUS: &str = "grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp|Groups):' \
                      /proc/self/status | tr -s '\\t ' ' '; id -u; id -g";

fn privileges(privileges: Privileges) -> ContainerConfig {
    ContainerConfig { privileges, ..shell(STATUS) }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|&word| word.to_owned()).collect()
}

#[tokio::test]
async fn what_a_container_writes_stays_in_its_layer_and_goes_with_it() {
    let node = Node::new().await;
    let sandbox = node.runtime.run_sandbox(&pod("layer", true)).await.unwrap();
    let name = format!("mizzen-test-{}", sandbox.id);
    let kept = node.path("shared/of-the-node");
    fs::write(&kept, "").unwrap();
    // Below /etc there is something of the machine's, below /tmp and /run nothing.
    let script = format!(
        "echo x > /etc/{name} && mkdir /opt/{name} && rm /etc/hostname && ls /etc/{name}; \
         ls -A /tmp /run | grep -v -e '^/' -e '^$' -e lock; ls {} 2>/dev/null; test -d /usr/bin",
        kept.display()
    );
    assert_eq!(node.said(&sandbox, shell(&script)).await, format!("/etc/{name}\n"));
    for path in ["etc", "opt"] {
        assert!(!Path::new("/").join(path).join(&name).exists(), "it reached the machine");
    }
    assert!(Path::new("/etc/hostname").exists());
    let id = format!("{}.main.0", sandbox.id);
    let layers = node.path(&format!("sandboxes/{}/layers/{id}", sandbox.id));
    assert!(layers.join("0/upper/etc").join(&name).exists());
    // Another container of the pod does not see it.
    let script = format!("test ! -e /etc/{name}");
    let other = ContainerConfig { attempt: 1, ..shell(&script) };
    let other = node.container(&sandbox, other).await;
    assert_eq!(node.exit_code(&sandbox, &other).await, 0);
    node.runtime.remove_container(&sandbox.id, &id).await.unwrap();
    assert!(!layers.exists());
    node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    node.assert_nothing_left();
}

/// As in a container of a developer, whose file system is an overlay itself.
#[tokio::test]
async fn where_an_overlay_can_not_hold_layers_memory_does() {
    let node = Node::new().await;
    let sandbox = node.runtime.run_sandbox(&pod("stacked", true)).await.unwrap();
    let layers = node.path(&format!("sandboxes/{}/layers", sandbox.id));
    let below = node.path("shared");
    for folder in ["lower", "upper", "work"] {
        fs::create_dir(below.join(folder)).unwrap();
    }
    fs::create_dir(&layers).unwrap();
    let option = |name: &str| format!("{name}dir={}", below.join(name).display());
    let options = ["lower", "upper", "work"].map(option).join(",");
    let (kind, flags) = (Some("overlay"), nix::mount::MsFlags::empty());
    nix::mount::mount(kind, &layers, kind, flags, Some(options.as_str())).unwrap();
    let script =
        "echo x > /etc/mizzen-test && cat /etc/mizzen-test; grep -c ' / overlay' /proc/mounts";
    let said = node.said(&sandbox, shell(script)).await;
    nix::mount::umount2(&layers, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(said, "x\n1\n");
    node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    node.assert_nothing_left();
}

#[tokio::test]
async fn volumes_are_where_they_are_mounted_and_nothing_is_made_on_the_machine() {
    let node = Node::new().await;
    let sandbox = node.runtime.run_sandbox(&pod("volumes", true)).await.unwrap();
    let place = format!("/mizzen-test-{}", sandbox.id);
    let shared = node.path("shared");
    for folder in ["own", "part/of"] {
        fs::create_dir_all(shared.join(folder)).unwrap();
    }
    fs::write(shared.join("part/of/file"), "part").unwrap();
    fs::write(shared.join("single"), "single").unwrap();
    let read_only = Mount { read_only: true, ..mount(&shared, &format!("{place}/read-only")) };
    let part = Mount {
        host_path: shared.join("part/of"),
        ..mount(&shared, &format!("{place}/deep/part"))
    };
    let config = ContainerConfig {
        mounts: vec![
            mount(&shared.join("own"), &format!("{place}/own")),
            read_only,
            part,
            mount(&shared.join("single"), &format!("{place}/single")),
            // A link of the machine's is followed in the container's root.
            mount(&shared.join("own"), "/var/run/mizzen-test/secret"),
            mount(&shared.join("not-there"), &format!("{place}/made")),
        ],
        ..shell(&format!(
            "cd {place}; echo written > own/file; cat /run/mizzen-test/secret/file read-only/own/file; \
             cat deep/part/file single; echo; test -d made && echo made; \
             touch read-only/x 2>/dev/null || echo closed; mknod own/disk b 254 0 && \
             cat own/disk >/dev/null 2>&1 || echo no disk; cat /proc/self/mounts | grep -c ' {place}'"
        ))
    };
    let said = node.said(&sandbox, config).await;
    assert_eq!(said, "written\nwritten\npartsingle\nmade\nclosed\nno disk\n5\n");
    assert_eq!(fs::read_to_string(shared.join("own/file")).unwrap(), "written\n");
    assert!(!Path::new(&place).exists() && !Path::new("/run/mizzen-test").exists());
    node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    assert!(shared.join("own/file").exists(), "what is the node's is gone with the pod");
    node.assert_nothing_left();
}

#[tokio::test]
async fn no_volume_leads_out_of_itself_or_into_the_kernels_files() {
    let node = Node::new().await;
    let sandbox = node.runtime.run_sandbox(&pod("escape", true)).await.unwrap();
    let shared = node.path("shared");
    symlink("/etc", shared.join("link")).unwrap();
    let out = Mount { host_path: shared.join("link"), ..mount(&shared, "/v") };
    for (attempt, (mount, wanted)) in [
        (out, "opening"),
        (mount(&shared, "/proc/1/root/etc"), "entering /proc/1/root"),
        (mount(&shared, "/proc/sys/kernel"), "nothing can be mounted in /proc"),
        (mount(&shared, "/a/../b"), "without .."),
        (mount(&shared, "/"), "the place of the container's root"),
    ]
    .into_iter()
    .enumerate()
    {
        let attempt = u32::try_from(attempt).unwrap();
        let config = ContainerConfig { attempt, mounts: vec![mount], ..shell("true") };
        let id = node.container(&sandbox, config).await;
        let message = node
            .until(&sandbox, &id, |state| match state {
                ContainerState::Exited { reason, message, .. } => {
                    assert_eq!(reason.as_deref(), Some("StartError"));
                    message.clone()
                }
                _ => None,
            })
            .await;
        assert!(message.contains(wanted), "{message}");
    }
    node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    node.assert_nothing_left();
}

#[tokio::test]
async fn users_groups_and_capabilities_are_those_that_were_asked_for() {
    let node = Node::new().await;
    let default = "00000000a80425fb";
    let none = "0000000000000000";
    let cases = [
        (
            "root",
            privileges(Privileges::default()),
            format!(
                "Groups: \nCapInh: {none}\nCapPrm: {default}\nCapEff: {default}\nCapBnd: {default}\n\
                 CapAmb: {none}\nNoNewPrivs: 0\nSeccomp: 0\n0\n0\n"
            ),
        ),
        (
            "user",
            ContainerConfig {
                run_as_user: Some(1000),
                run_as_group: Some(1001),
                ..privileges(Privileges {
                    groups: vec![2000, 6],
                    seccomp: Seccomp::RuntimeDefault,
                    ..Privileges::default()
                })
            },
            format!(
                "Groups: 6 2000 \nCapInh: {none}\nCapPrm: {none}\nCapEff: {none}\nCapBnd: {default}\n\
                 CapAmb: {none}\nNoNewPrivs: 0\nSeccomp: 2\n1000\n1001\n"
            ),
        ),
        (
            "little",
            privileges(Privileges {
                add_capabilities: words(&["NET_ADMIN"]),
                drop_capabilities: words(&["ALL"]),
                no_new_privileges: true,
                ..Privileges::default()
            }),
            format!(
                "Groups: \nCapInh: {none}\nCapPrm: 0000000000001000\nCapEff: 0000000000001000\n\
                 CapBnd: 0000000000001000\nCapAmb: {none}\nNoNewPrivs: 1\nSeccomp: 0\n0\n0\n"
            ),
        ),
    ];
    for (name, config, expected) in cases {
        let sandbox = node.runtime.run_sandbox(&pod(name, true)).await.unwrap();
        assert_eq!(node.said(&sandbox, config).await, expected, "{name}");
        node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    }
    node.assert_nothing_left();
}

/// The commands succeed only where they may.
#[tokio::test]
async fn the_privileged_may_what_others_may_not() {
    let node = Node::new().await;
    let script = "mount -t tmpfs none /mnt 2>/dev/null && echo mounted; \
                  unshare --net true 2>/dev/null && echo unshared; \
                  unshare --user true && echo users; \
                  test -b /dev/vda -o -b /dev/sda -o -e /dev/kmsg && echo devices; \
                  echo 1 > /proc/sys/net/ipv4/ip_default_ttl 2>/dev/null; \
                  grep -q . /proc/timer_list && echo timers; \
                  ls /sys/firmware | grep -q . && echo firmware; \
                  mknod /dev/x c 1 3; echo y > /dev/x && echo null; \
                  ls /proc/1/root/ >/dev/null 2>&1 && echo init; true";
    let admin = |seccomp| Privileges {
        add_capabilities: words(&["SYS_ADMIN"]),
        seccomp,
        ..Privileges::default()
    };
    let filtered = Privileges { seccomp: Seccomp::RuntimeDefault, ..Privileges::default() };
    let everything = Privileges { privileged: true, ..admin(Seccomp::RuntimeDefault) };
    for (name, privileges, expected) in [
        // Without a filter anybody may make users of his own, if nothing else.
        ("plain", Privileges::default(), "users\n"),
        ("filtered", filtered, ""),
        ("admin", admin(Seccomp::RuntimeDefault), "mounted\nunshared\nusers\n"),
        (
            "privileged",
            everything,
            "mounted\nunshared\nusers\ndevices\ntimers\nfirmware\nnull\ninit\n",
        ),
    ] {
        node.install_plugin();
        let sandbox = node.runtime.run_sandbox(&pod(name, false)).await.unwrap();
        let config =
            ContainerConfig { privileges, ..shell(&format!("{{ {script}; }} 2>/dev/null")) };
        let said = node.said(&sandbox, config).await;
        assert_eq!(said, expected, "{name}");
        node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    }
    node.assert_nothing_left();
}

/// Threads are made by clone3(2), which the filter has programs do without.
#[tokio::test]
async fn a_program_with_threads_runs_with_the_filter() {
    let node = Node::new().await;
    let sandbox = node.runtime.run_sandbox(&pod("threads", true)).await.unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = ContainerConfig {
        image: "hello".into(),
        command: Vec::new(),
        env: vec![("PORT".into(), port.to_string()), ("DRAIN_SECONDS".into(), "0".into())],
        privileges: Privileges {
            seccomp: Seccomp::RuntimeDefault,
            drop_capabilities: words(&["ALL"]),
            read_only_root: true,
            no_new_privileges: true,
            ..Privileges::default()
        },
        ..shell("")
    };
    let id = node.container(&sandbox, config).await;
    let connect = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), connect).await.expect("an open port");
    node.runtime.stop_container(&sandbox.id, &id, Duration::from_secs(20)).await.unwrap();
    assert_eq!(node.exit_code(&sandbox, &id).await, 0);
    node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_read_only_root_has_only_its_volumes_to_write_to() {
    let node = Node::new().await;
    let sandbox = node.runtime.run_sandbox(&pod("closed", true)).await.unwrap();
    fs::set_permissions(node.path("shared"), PermissionsExt::from_mode(0o777)).unwrap();
    let config = ContainerConfig {
        mounts: vec![mount(&node.path("shared"), "/var/volume")],
        run_as_user: Some(1000),
        privileges: Privileges { read_only_root: true, ..Privileges::default() },
        termination: Termination { path: "/dev/termination-log".into(), or_log: false },
        ..shell(
            "for f in /x /tmp/x /etc/hosts /usr/x /var/x; do { echo x > $f; } 2>/dev/null && echo $f; \
             done; echo -n why > /dev/termination-log; echo x > /var/volume/x; echo x > /dev/shm/x; \
             echo x > /dev/null; exit 3",
        )
    };
    let id = node.container(&sandbox, config).await;
    let message = node
        .until(&sandbox, &id, |state| match state {
            ContainerState::Exited { exit_code, message, .. } => {
                assert_eq!(*exit_code, 3);
                Some(message.clone())
            }
            _ => None,
        })
        .await;
    assert_eq!((message.as_deref(), node.log("closed").as_str()), (Some("why"), ""));
    assert!(node.path("shared/x").exists());
    node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_command_is_executed_with_the_root_and_the_rights_of_its_container() {
    let node = Node::new().await;
    let sandbox = node.runtime.run_sandbox(&pod("inside", true)).await.unwrap();
    let config = ContainerConfig {
        mounts: vec![mount(&node.path("shared"), "/volume")],
        run_as_user: Some(1000),
        run_as_group: Some(1001),
        privileges: Privileges {
            drop_capabilities: words(&["ALL"]),
            seccomp: Seccomp::RuntimeDefault,
            no_new_privileges: true,
            groups: vec![2000],
            ..Privileges::default()
        },
        ..shell("echo of-the-container > /tmp/mizzen-test; echo ready; exec sleep 1000")
    };
    let id = node.container(&sandbox, config).await;
    wait_for_log(&node, "inside", "ready\n").await;
    let script = "cat /tmp/mizzen-test; readlink /proc/self/ns/mnt; grep ^0:: /proc/self/cgroup; \
                  test -d /volume && echo volume; id -u; id -G; \
                  grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | cut -f2; \
                  ls /proc/self/fd | tr '\\n' ' '";
    let command = words(&["/bin/sh", "-c", script]);
    let limit = Duration::from_secs(10);
    let said = node.runtime.exec(&sandbox.id, &id, &command, limit).await.unwrap();
    let lines: Vec<_> = said.output.lines().collect();
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    assert_ne!(lines[1], own.to_str().unwrap());
    assert!(lines[2].ends_with("/pods/poduid-inside/main.0"), "{said:?}");
    assert_eq!(
        [&lines[..1], &lines[3..]].concat(),
        [
            "of-the-container",
            "volume",
            "1000",
            "1001 2000",
            "0000000000000000",
            "1",
            "2",
            "0 1 2 3 "
        ],
    );
    // What cannot be run says so, and so does a container that is over.
    let missing = node.runtime.exec(&sandbox.id, &id, &words(&["/no/such"]), limit).await;
    let missing = missing.unwrap_err();
    assert!(format!("{missing:?}").contains("/no/such"), "{missing:?}");
    node.runtime.stop_container(&sandbox.id, &id, Duration::ZERO).await.unwrap();
    let over = node.runtime.exec(&sandbox.id, &id, &command, limit).await.unwrap_err();
    assert!(format!("{over:?}").contains("does not run"), "{over:?}");
    node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    node.assert_nothing_left();
}

#[tokio::test]
async fn limits_hold_and_the_end_for_want_of_memory_is_told() {
    let node = Node::new().await;
    let sandbox = node.runtime.run_sandbox(&pod("limits", true)).await.unwrap();
    let limits = Limits {
        cpu_shares: 512,
        cpu_quota_us: 50_000,
        memory_bytes: 32 << 20,
        oom_score_adj: 500,
    };
    let script = "cat /proc/self/oom_score_adj; echo ready; read x < /shared/fifo; \
                  exec dd if=/dev/zero of=/dev/null bs=256M count=1";
    let fifo = node.path("shared/fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mounts = vec![mount(&node.path("shared"), "/shared")];
    let id = node.container(&sandbox, ContainerConfig { limits, mounts, ..shell(script) }).await;
    wait_for_log(&node, "limits", "500\nready\n").await;
    if !node.runtime.abilities().memory {
        // A machine without controllers says so to who asks for limits.
        return node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    }
    let value = |files: &[&str]| node.cgroup_value("limits", files);
    assert_eq!(value(&["memory.limit_in_bytes", "memory.max"]).unwrap(), (32 << 20).to_string());
    assert_eq!(value(&["pids.max"]).as_deref(), Some("4096"));
    if node.runtime.abilities().cpu {
        let quota = value(&["cpu.cfs_quota_us", "cpu.max"]).unwrap();
        assert!(quota.starts_with("50000"), "{quota}");
        let shares = value(&["cpu.shares", "cpu.weight"]).unwrap();
        assert!(shares == "512" || shares == "20", "{shares}");
    }
    fs::write(&fifo, "go\n").unwrap();
    let ended = node
        .until(&sandbox, &id, |state| match state {
            ContainerState::Exited { exit_code, reason, .. } => Some((*exit_code, reason.clone())),
            _ => None,
        })
        .await;
    assert_eq!(ended, (137, Some("OOMKilled".to_owned())));
    node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    node.assert_nothing_left();
}

/// Where a file system hangs or a program is killed on the way, only that container is concerned.
#[tokio::test]
async fn killed_on_the_way_to_its_program_a_container_leaves_nothing() {
    let mut node = Node::new().await;
    for round in 0..20_u64 {
        let name = format!("killed-{round}");
        let sandbox = node.runtime.run_sandbox(&pod(&name, true)).await.unwrap();
        let id = node.runtime.create_container(&sandbox.id, &shell("sleep 1000")).await.unwrap();
        let kill = node.cgroup.join(format!("pods/poduid-{name}/cgroup.kill"));
        let (started, ()) = tokio::join!(node.runtime.start_container(&sandbox.id, &id), async {
            // Anywhere between the request and the program.
            tokio::time::sleep(Duration::from_micros(400 * round)).await;
            fs::write(&kill, "1").unwrap();
        });
        drop(started);
        if round % 2 == 0 {
            node.restart().await;
        }
        node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    }
    node.assert_nothing_left();
}
