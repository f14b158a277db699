//! `cargo xtask lint`: formatting, lints, documentation and the rules that no lint knows.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::{
    checkout, conformance, console, deny, deploy, invoke, links, monitoring, product, step::step,
    toolchain,
};

/// Licences that may be linked into what we ship. `deny.toml` says the same to cargo-deny.
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "GPL-2.0-only",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "MPL-2.0+",
    // Of libFuzzer, which is a part of no program of the product.
    "NCSA",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// File names that say nothing of what belongs there.
const EMPTY_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "misc", "common", "manager"];

/// Lines that a Rust file may have.
const LINES_MAX: usize = 600;

/// Pages that the agent itself prints, and what asks for them.
const REFERENCES: [(&str, &[&str]); 2] =
    [("docs/configuration.md", &[]), ("docs/cli.md", &["--command-lines"])];

/// Options of `lint`.
#[derive(Args, Debug)]
pub struct Lint {
    /// First mend what can be: formatting, the tests that docs/conformance.md names, and files that
    /// are made: manifests, chart, reference pages
    #[arg(long)]
    fix: bool,
}

/// Runs every check; the first that fails ends it.
pub fn run(options: &Lint) -> Result<()> {
    if options.fix {
        invoke::run(product::cargo().args(["fmt", "--all"]))?;
        conformance::name_tests(&checkout())?;
        deploy::write(&checkout())?;
    }
    step("formatting", || invoke::run(product::cargo().args(["fmt", "--all", "--check"])))?;
    toolchain::ensure_tools(toolchain::BUILD_TOOLS)?;
    step("lints", || {
        invoke::run(product::cargo().args([
            "clippy",
            "--quiet",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]))
    })?;
    step("lints of the eBPF programs", lint_programs)?;
    step("documentation", || {
        let mut doc = product::cargo();
        doc.args(["doc", "--quiet", "--no-deps", "--document-private-items"]);
        invoke::run(
            doc.env("RUSTDOCFLAGS", "--deny warnings --allow rustdoc::private_intra_doc_links"),
        )
    })?;
    step("reference pages", || check_references(options.fix))?;
    step("manifests and chart", || told(&deploy::complaints(&checkout())?))?;
    step("dashboard, alerts and runbooks", || told(&monitoring::complaints(&checkout())?))?;
    step("licences and sources of dependencies", check_dependencies)?;
    step("cargo-deny", deny::check)?;
    step("numbered behaviours", check_conformance)?;
    step("names, sizes and links", check_tree)
}

/// The programs are built for their own target by their own compiler: building them is the check.
fn lint_programs() -> Result<()> {
    let compiler = toolchain::ensure_bpf()?;
    product::build_programs(compiler)
}

/// The pages that the agent itself prints, and the schema of the chart's values by what it says of
/// its configuration.
fn check_references(fix: bool) -> Result<()> {
    let printed = |asked: &[&str]| {
        let mut agent = product::cargo();
        agent.args(["run", "--quiet", "-p", "mizzen-agent", "--bin", "mizzen-agent", "--"]);
        invoke::capture(agent.args(["config", "reference"]).args(asked))
    };
    let mut files = Vec::new();
    for (file, asked) in REFERENCES {
        files.push((file, printed(asked)?));
    }
    let schema = serde_json::from_str(&printed(&["--schema"])?)?;
    files.push(("deploy/chart/values.schema.json", deploy::values_schema(&schema)?));
    for (file, page) in files {
        let path = checkout().join(file);
        if fix {
            fs::write(&path, page).with_context(|| format!("can't write {file}"))?;
        } else if fs::read_to_string(&path).ok() != Some(page) {
            bail!("{file}: `cargo xtask lint --fix` makes another one");
        }
    }
    Ok(())
}

/// Complaints as an error.
fn told(complaints: &[String]) -> Result<()> {
    if complaints.is_empty() { Ok(()) } else { bail!("{}", complaints.join("\n")) }
}

fn check_dependencies() -> Result<()> {
    let mut metadata = product::cargo();
    metadata.args(["metadata", "--format-version", "1", "--locked"]);
    let metadata: Value = serde_json::from_str(&invoke::capture(&mut metadata)?)?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let mut complaints = Vec::new();
    for package in packages {
        let (name, licence) = (&package["name"], package["license"].as_str().unwrap_or(""));
        if !licence_allowed(licence) {
            complaints.push(format!("{name}: licence {licence:?} is not in the list"));
        }
        // Cargo names none for packages of this checkout.
        if package["source"].as_str().is_some_and(|source| !source.starts_with("registry+")) {
            complaints.push(format!("{name}: is not from the registry of crates"));
        }
    }
    told(&complaints)
}

/// Whether an SPDX expression can be met from the list.
fn licence_allowed(expression: &str) -> bool {
    let expression = expression.replace(['(', ')'], "").replace('/', " OR ");
    expression
        .split(" AND ")
        .all(|part| part.split(" OR ").any(|choice| LICENCES.contains(&choice.trim())))
}

fn check_conformance() -> Result<()> {
    told(&conformance::complaints(&checkout())?)
}

fn check_tree() -> Result<()> {
    let listed = invoke::capture(Command::new("git").current_dir(checkout()).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let files: Vec<PathBuf> = listed.lines().map(PathBuf::from).collect();
    let mut complaints = Vec::new();
    for file in &files {
        let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let rust = file.extension().is_some_and(|extension| extension == "rs");
        let Ok(text) = fs::read_to_string(checkout().join(file)) else { continue };
        if rust {
            if EMPTY_NAMES.contains(&stem) {
                complaints
                    .push(format!("{}: the name does not say what belongs there", file.display()));
            }
            if text.lines().count() > LINES_MAX {
                complaints.push(format!("{}: over {LINES_MAX} lines", file.display()));
            }
            if !text.starts_with("//!") && !text.starts_with("#!") {
                complaints.push(format!("{}: does not open with what it is for", file.display()));
            }
        }
        if file.extension().is_some_and(|extension| extension == "md") {
            let folder = checkout().join(file.parent().unwrap_or(std::path::Path::new("")));
            complaints.extend(links::dead(file, &folder, &text));
            complaints.extend(console::unexplained(file, &text));
        }
    }
    told(&complaints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_expressions() {
        assert!(licence_allowed("MIT OR Apache-2.0"));
        assert!(licence_allowed("MIT/Apache-2.0"));
        assert!(licence_allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(!licence_allowed("GPL-3.0-only"));
        assert!(!licence_allowed("MIT AND GPL-3.0-only"));
        assert!(!licence_allowed(""));
    }
}
