//! `mizzen bugreport --file -`, as one takes it out of a pod: on standard output is the archive, whole,
//! and nothing else. Needs root.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use super::dns::field::{Field, Host, binary};

/// Given to the agent where secrets come from: its environment.
const SECRET: &str = "hunter2hunter2";

fn report(host: &Host) -> Output {
    let mut command = host.node.netns.command(&binary("mizzen"));
    command.arg("--state-dir").arg(host.state()).args(["bugreport", "--file", "-"]);
    command.output().unwrap()
}

/// What a program says that is fed with these octets; it has to take all of them.
fn fed(command: &mut Command, octets: &[u8]) -> Output {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(octets).unwrap());
        child.wait_with_output().unwrap()
    })
}

/// The texts of an archive, by the names of their files.
fn unpacked(archive: &[u8]) -> BTreeMap<String, String> {
    // It warns of whatever stands behind the last octet that is gzip's.
    let tested = fed(Command::new("gzip").args(["--test", "--verbose"]), archive);
    assert!(tested.status.success(), "{tested:?}");
    let folder = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--gzip", "--file=-", "--directory"]).arg(folder.path());
    let extracted = fed(&mut tar, archive);
    assert!(extracted.status.success() && extracted.stderr.is_empty(), "{extracted:?}");
    let mut texts = BTreeMap::new();
    let mut folders = vec![folder.path().join("mizzen-bugreport")];
    while let Some(path) = folders.pop() {
        for entry in fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else {
                let name = entry.strip_prefix(folder.path()).unwrap().display().to_string();
                texts.insert(name, fs::read_to_string(&entry).unwrap());
            }
        }
    }
    texts
}

/// Of the credentials in a kubeconfig, what can't be there by chance.
fn credentials(kubeconfig: &Path) -> Vec<String> {
    let text = fs::read_to_string(kubeconfig).unwrap();
    let data = text.lines().filter_map(|line| line.trim().split_once("-data: "));
    data.map(|(_, value)| value.trim_matches('"').to_owned()).collect()
}

#[test]
fn a_bug_report_on_standard_output_is_a_whole_archive_without_secrets() {
    let field = Field::new();
    let host = &field.hosts[0];
    let agent = field.begin_by(host, &["env", &format!("CLOUD_TOKEN={SECRET}")], &[]);
    agent.until_ready(host);
    let Output { status, stdout, stderr } = report(host);
    let said = String::from_utf8(stderr).unwrap();
    assert!(status.success(), "{said}");
    let texts = unpacked(&stdout);
    // How many there are is said, and so that none is missing is known.
    assert!(
        said.starts_with(&format!("wrote to standard output: {} files", texts.len())),
        "{said}"
    );
    let of = |name: &str| texts[&format!("mizzen-bugreport/{name}")].as_str();
    for (name, has) in [
        ("about.txt", env!("CARGO_PKG_VERSION")),
        ("config.yaml", "nodeName:"),
        ("process.txt", "CLOUD_TOKEN=(removed)"),
        ("metrics.txt", "mizzen_map_pressure"),
        ("programs.txt", "connect4"),
        ("kernel/proc.version.txt", "Linux version"),
    ] {
        assert!(of(name).contains(has), "{name}: {}", of(name));
    }
    for name in ["status.json", "check.json", "services.json", "backends.json", "flows.json"] {
        assert!(serde_json::from_str::<Value>(of(name)).is_ok(), "{name}: {}", of(name));
    }
    let credentials = credentials(&field.kubeconfig);
    assert!(!credentials.is_empty(), "nothing that could be given away");
    for (name, text) in &texts {
        assert!(!text.contains(SECRET), "{name}: {text}");
        assert!(!credentials.iter().any(|secret| text.contains(secret)), "{name}: {text}");
    }
}
