//! The target that `MIZZEN_FUZZ` names under libFuzzer, which takes the command line and calls it.
//! Built and started by `cargo xtask fuzz`.

#![no_main]

use std::{fs, path::Path, sync::LazyLock};

use mizzen_fuzz::Target;

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var("MIZZEN_FUZZ").unwrap_or_default();
    Target::named(&name).unwrap_or_else(|| panic!("MIZZEN_FUZZ={name} is no target"))
});

/// Puts what a search begins with into the folder that `MIZZEN_FUZZ_SEEDS` names, if it names one.
fn write_seeds() {
    let Some(folder) = std::env::var_os("MIZZEN_FUZZ_SEEDS") else { return };
    for (number, octets) in (TARGET.seeds)().into_iter().enumerate() {
        let path = Path::new(&folder).join(format!("seed-{number}"));
        fs::write(&path, octets).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

libfuzzer_sys::fuzz_target!(init: write_seeds(), |octets: &[u8]| (TARGET.run)(octets));
