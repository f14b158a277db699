//! The other servers: Debian's packages, fetched and unpacked below the target folder, not
//! installed. So none of them is started by its package, and none is left on the machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{invoke, step::step, target_dir};

/// What has the servers; `apt-get` adds the libraries that the machine lacks.
const PACKAGES: [&str; 4] = ["unbound", "dnsmasq-base", "bind9", "knot"];
/// The programs in them.
const PROGRAMS: [&str; 4] = ["unbound", "dnsmasq", "named", "knotd"];

/// Where they are unpacked.
#[derive(Clone, Debug)]
pub struct Packages {
    root: PathBuf,
}

impl Packages {
    /// Fetches and unpacks what is not there yet.
    pub fn ensure() -> Result<Self> {
        let folder = target_dir().join("bench-peers");
        let packages = Self { root: folder.join("root") };
        if PROGRAMS.iter().any(|name| !packages.program(name).exists()) {
            step(&format!("fetching {} (not installed)", PACKAGES.join(", ")), || {
                unpack(&folder, &packages.root)
            })?;
        }
        for name in PROGRAMS {
            let program = packages.program(name);
            ensure!(program.exists(), "no package brought {}", program.display());
        }
        Ok(packages)
    }

    /// The path of a server.
    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join("usr/sbin").join(name)
    }

    /// The environment in which they find their libraries.
    pub fn env(&self) -> Vec<(String, String)> {
        let arch = std::env::consts::ARCH;
        let libraries = self.root.join(format!("usr/lib/{arch}-linux-gnu"));
        vec![("LD_LIBRARY_PATH".into(), libraries.display().to_string())]
    }
}

fn unpack(folder: &Path, root: &Path) -> Result<()> {
    let archives = folder.join("archives");
    fs::create_dir_all(archives.join("partial"))
        .and_then(|()| fs::create_dir_all(root))
        .with_context(|| format!("can't make {}", folder.display()))?;
    let archives_option = format!("Dir::Cache::archives={}", archives.display());
    invoke::capture(&mut invoke::command("apt-get", ["-qq", "update"]))?;
    let mut fetch = vec!["-qq", "-o", &archives_option, "install", "--download-only"];
    fetch.extend(["--yes", "--no-install-recommends"]);
    fetch.extend(PACKAGES);
    invoke::capture(&mut invoke::command("apt-get", fetch))?;
    for entry in fs::read_dir(&archives)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let args = ["--extract".as_ref(), path.as_os_str(), root.as_os_str()];
            invoke::capture(&mut invoke::command("dpkg-deb", args))?;
        }
    }
    Ok(())
}
