//! A disk that is full: writes are refused and say why, reads go on, and so does everything as
//! soon as there is space.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::json;

use crate::process::{Home, LIMIT};

/// A small disk of its own: a tmpfs in the mount namespace of a process, which ends with it.
struct Disk {
    holder: Child,
    /// As everybody can reach it.
    path: PathBuf,
}

impl Disk {
    fn new(home: &Home, megabytes: u32) -> Self {
        let place = home.data().with_extension("disk");
        fs::create_dir(&place).unwrap();
        let mount = format!(
            "mount -t tmpfs -o size={megabytes}m tmpfs \"$0\" && : > \"$0/mounted\" && exec sleep 3600"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &mount]).arg(&place);
        let holder = command.stdin(Stdio::null()).spawn().unwrap();
        let root = PathBuf::from(format!("/proc/{}/root", holder.id()));
        let path = root.join(place.strip_prefix("/").unwrap());
        let disk = Self { holder, path };
        let deadline = Instant::now() + LIMIT;
        while !disk.path.join("mounted").exists() {
            assert!(Instant::now() < deadline, "no tmpfs, which needs root");
            std::thread::sleep(Duration::from_millis(5));
        }
        disk
    }

    /// Takes all space that is left.
    fn fill(&self) {
        let mut ballast = File::options().append(true).create(true).open(self.ballast()).unwrap();
        for size in [1 << 20, 4096, 1] {
            while ballast.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn empty(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn map(name: &str) -> ConfigMap {
    let text = name.repeat(20_000 / name.len());
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"text": text}})).unwrap()
}

/// Creates maps until one is refused for want of space; returns the names of those that are there.
async fn fill(api: &Api<ConfigMap>, prefix: &str) -> Vec<String> {
    let mut made = Vec::new();
    for number in 0..2_000 {
        let name = format!("{prefix}-{number}");
        match api.create(&PostParams::default(), &map(&name)).await {
            Ok(_) => made.push(name),
            Err(kube::Error::Api(status)) => {
                assert_eq!((status.code, status.reason.as_str()), (507, "InternalError"));
                let message = &status.message;
                assert!(message.contains(".log: No space left on device"), "{message}");
                assert!(message.contains("free space"), "{message}");
                return made;
            }
            Err(other) => panic!("{other}"),
        }
    }
    panic!("the disk is never full");
}

async fn names(api: &Api<ConfigMap>) -> Vec<String> {
    let list = api.list(&ListParams::default()).await.unwrap();
    let mut names: Vec<String> = list.items.iter().map(kube::ResourceExt::name_any).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_by_the_files_name_and_reads_go_on() {
    let home = Home::new();
    let disk = Disk::new(&home, 8);
    let home = home.at(disk.path.join("data"));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = home.spawn(home.command_on(port));
    let api = Api::<ConfigMap>::default_namespaced(home.ready(&mut server).await);
    // Somebody else's, which will go.
    fs::write(disk.ballast(), vec![0; 1 << 20]).unwrap();
    let mut made = fill(&api, "a").await;
    assert!(made.len() > 50, "{}", made.len());

    made.sort();
    assert_eq!(names(&api).await, made);
    let first = api.get(&made[0]).await.unwrap();
    assert_eq!(first.data, map(&made[0]).data);
    // What makes room needs room: the last page of the log has some, for a while.
    disk.fill();
    let refused = loop {
        match api.delete(&made[0], &DeleteParams::default()).await {
            Ok(_) => drop(made.remove(0)),
            Err(refused) => break refused.to_string(),
        }
    };
    assert!(refused.contains("No space left on device"), "{refused}");
    let newest = async |api: &Api<ConfigMap>| {
        api.list(&ListParams::default().limit(1)).await.unwrap().metadata.resource_version
    };
    let before = newest(&api).await;
    assert!(api.delete(&made[0], &DeleteParams::default()).await.is_err());
    assert_eq!(before, newest(&api).await, "a refused write has a revision");
    assert_eq!(names(&api).await, made);

    // A start needs none for what is there.
    drop(server);
    let mut server = home.spawn(home.command_on(port));
    let api = Api::<ConfigMap>::default_namespaced(home.ready(&mut server).await);
    assert_eq!(names(&api).await, made);
    assert!(fill(&api, "b").await.is_empty());

    disk.empty();
    made.push(api.create(&PostParams::default(), &map("c")).await.unwrap().name_any());
    drop(server);
    let mut server = home.spawn(home.command_on(port));
    let api = Api::<ConfigMap>::default_namespaced(home.ready(&mut server).await);
    assert_eq!(names(&api).await, made);
}
