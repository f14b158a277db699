//! Tables of hosts, and where their files are.

use super::*;

/// Whether the first block's table has that name.
fn has(said: &Said, of: &str) -> bool {
    let query = hickory_proto::op::Query::query(name(of), RecordType::A);
    let hosts = said.blocks[0].hosts.as_ref().expect("a table");
    hosts.answer(&query).is_some_and(|reply| !reply.answers.is_empty())
}

#[test]
fn a_file_without_a_leading_slash_is_below_the_root() {
    let files = [
        ("/etc/coredns/NodeHosts", "192.0.2.31 below.example\n"),
        ("NodeHosts", "192.0.2.32 beside.example\n"),
        ("/NodeHosts", "192.0.2.33 whole.example\n"),
    ];
    for (file, root, of) in [
        ("NodeHosts", "", "beside.example."),
        // Wherever it stands, and the last of several.
        ("NodeHosts", "root /elsewhere\n root /etc/coredns\n", "below.example."),
        ("/NodeHosts", "root /etc/coredns\n", "whole.example."),
    ] {
        let text = format!(". {{\n hosts {file}\n {root}}}\nlab {{\n hosts NodeHosts\n}}\n");
        let said = read_with(&text, &files).unwrap();
        let names = ["beside.example.", "below.example.", "whole.example."];
        assert_eq!(names.map(|name| has(&said, name)), names.map(|name| name == of), "{text}");
        assert_eq!(said.warnings, [], "{text}");
    }
    are_errors(&[(". {\n root\n}\n", "2:2", "has one argument")]);
}

/// As one file that another is imported into.
#[test]
fn a_second_directive_takes_nothing_from_the_first() {
    let custom = [
        ("/etc/coredns/NodeHosts", "192.0.2.31 server-1\n"),
        ("/etc/coredns/custom/x.override", "\n  hosts {\n192.0.2.9 mine.example\n}\n"),
    ];
    let text = include_str!("../fixtures/k3s.Corefile");
    let error = read_with(text, &custom).unwrap_err().to_string();
    let expected = "/etc/coredns/custom/x.override:2:3: the block has hosts already";
    assert!(error.starts_with(expected), "{error}");
    are_errors(&[
        (". {\n hosts\n hosts\n}\n", "3:2", "has hosts already"),
        (". {\n cache 30\n cache 60\n}\n", "3:2", "has cache already"),
        (". {\n errors\n errors {\n  consolidate 5m x\n }\n}\n", "3:2", "has errors already"),
    ]);
    let other = ". {\n cache\n hosts\n errors\n}\nlab {\n cache\n hosts\n errors\n}\n";
    assert!(read_with(other, &[]).is_ok(), "in another block");
}

/// A machine on which one file can't be read.
struct Locked(Files, &'static str);

impl Surroundings for Locked {
    fn read(&self, path: &Path) -> io::Result<String> {
        if path == Path::new(self.1) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.0.read(path)
    }

    fn matching(&self, pattern: &Path) -> Vec<PathBuf> {
        self.0.matching(pattern)
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.0.variable(name)
    }
}

#[test]
fn a_table_that_cant_be_read_is_an_error_and_no_empty_one() {
    for (text, locked, place) in [
        (". {\n hosts /table {\n  fallthrough\n }\n}\n", "/table", "2:8"),
        (". {\n hosts\n}\n", "/etc/hosts", "2:2"),
    ] {
        let files = Files(BTreeMap::from([("/Corefile", text.to_owned())]));
        let served = Served {
            domain: name("cluster.local."),
            port: 53,
            addresses: Vec::new(),
            node_local: Vec::new(),
            connects_pods: true,
        };
        let read = read(Path::new("/Corefile"), &served, &Locked(files, locked));
        let error = read.unwrap_err().to_string();
        let expected = format!("/Corefile:{place}: the table {locked} can't be read");
        assert!(error.starts_with(&expected), "{error}");
    }
}
