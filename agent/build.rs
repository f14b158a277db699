//! Finds the eBPF object for the agent to embed (`src/datapath/object.rs`).
//!
//! `cargo xtask build` makes the object first. Without it the agent builds all the same, with an
//! empty one, and says at run time what is missing: most work on it needs no BPF compiler.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

const OBJECT: &str = "bpfel-unknown-none/release/mizzen-ebpf";

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let found = out.ancestors().map(|folder| folder.join(OBJECT)).find(|path| path.is_file());
    let embedded = out.join("mizzen-ebpf.o");
    if let Some(object) = &found {
        fs::copy(object, &embedded).expect("copy the eBPF object to OUT_DIR");
        println!("cargo:rerun-if-changed={}", object.display());
    } else {
        fs::write(&embedded, b"").expect("write to OUT_DIR");
        println!("cargo:rerun-if-changed={}", missing(&out).display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=MIZZEN_EBPF_OBJECT={}", embedded.display());
}

/// What to watch for the object to appear: the folder where it will, as a missing file would make
/// cargo build the agent anew each time; else the file all the same.
fn missing(out: &Path) -> PathBuf {
    let object = Path::new(OBJECT);
    let folder = object.parent().unwrap_or(object);
    let mut ancestors = out.ancestors();
    ancestors
        .find_map(|above| Some(above.join(folder)).filter(|path| path.is_dir()))
        .unwrap_or_else(|| out.join(object))
}
