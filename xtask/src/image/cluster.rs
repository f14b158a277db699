//! The images of a cluster on this machine: `hello` and `pause` are our own static program;
//! `busybox` is Debian's with its libraries.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use anyhow::{Context, Result};

use super::{
    INDEX, Image, copy, fill,
    oci::{self, Recipe},
};
use crate::invoke;

/// Makes every image in `dir`, the static program being `program`.
pub fn make_all(dir: &Path, program: &Path) -> Result<Vec<Image>> {
    fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    let own = dir.join("own.root");
    fill(&own, |root| copy(program, &root.join("mizzen-image")))?;
    let busybox = dir.join("busybox.root");
    fill(&busybox, fill_busybox)?;
    let program = "/mizzen-image";
    let images = [
        Recipe { name: "hello", root: &own, entrypoint: vec![program, "hello"], ..Recipe::bare() },
        Recipe { name: "pause", root: &own, entrypoint: vec![program, "pause"], ..Recipe::bare() },
        Recipe { name: "busybox", root: &busybox, command: vec!["/bin/sh"], ..Recipe::bare() },
    ]
    .iter()
    .map(|recipe| oci::make(dir, recipe))
    .collect::<Result<Vec<_>>>()?;
    for root in [own, busybox] {
        fs::remove_dir_all(&root).with_context(|| format!("can't remove {}", root.display()))?;
    }
    fs::write(dir.join(INDEX), serde_json::to_vec_pretty(&images)?)?;
    Ok(images)
}

/// Debian's `busybox`, the libraries that it is linked to, and a link for each of its commands.
/// Its static sister crashes where it resolves names: that needs libraries of glibc's.
fn fill_busybox(root: &Path) -> Result<()> {
    let busybox = Path::new("/bin/busybox");
    copy(busybox, &root.join("bin/busybox"))?;
    let linked = invoke::capture(Command::new("ldd").arg(busybox))?;
    for library in libraries(&linked) {
        copy(Path::new(library), &root.join(library.trim_start_matches('/')))?;
    }
    let commands = invoke::capture(Command::new(busybox).arg("--list"))?;
    for command in commands.lines().filter(|command| *command != "busybox") {
        symlink("busybox", root.join("bin").join(command))?;
    }
    Ok(())
}

/// The files in what `ldd` prints.
fn libraries(linked: &str) -> Vec<&str> {
    let path = |line: &'_ str| -> Option<usize> { line.find('/') };
    let of_line = |line| {
        let start: &str = &str::trim(line)[path(str::trim(line))?..];
        start.split_whitespace().next()
    };
    linked.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_files_that_ldd_names() {
        let said = "\tlinux-vdso.so.1 (0x00007ff57a6dc000)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007ff57a41a000)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007ff57a6de000)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries(said), expected);
    }
}
