//! `cargo xtask bench`: side-by-side benchmarks on a cluster of its own.

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    bench::{self, Area, Figure, Options},
    checkout,
    product::{self, Profile},
    step::note,
    target_dir, toolchain,
};

/// Options of `bench`.
#[derive(Args, Debug)]
pub struct Bench {
    /// Which area
    #[arg(value_enum, default_value = "services")]
    area: Area,
    /// Print one object a line on standard output
    #[arg(long)]
    json: bool,
    /// How often the contenders take turns
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Only figures whose name begins so (repeatable); the page is then target/bench/benchmarks.md
    #[arg(long)]
    only: Vec<String>,
    /// Measure what `cargo xtask build --debug` builds, to try the benchmark itself; the page is
    /// then target/bench/benchmarks.md
    #[arg(long)]
    debug: bool,
    /// Measure what was built last, as it is
    #[arg(long)]
    built: bool,
}

/// Measures, prints the figures, and writes docs/benchmarks.md after a run of everything.
pub fn run(options: &Bench) -> Result<()> {
    toolchain::require_root("`cargo xtask bench`")?;
    bench::interrupt::listen()?;
    toolchain::ensure_tools(toolchain::CLUSTER_TOOLS)?;
    toolchain::ensure_tools(match options.area {
        Area::Services => toolchain::BENCH_TOOLS,
        Area::Cni => toolchain::CNI_BENCH_TOOLS,
        Area::Dns => toolchain::DNS_BENCH_TOOLS,
        Area::ControlPlane => toolchain::CONTROL_PLANE_BENCH_TOOLS,
    })?;
    let profile = if options.debug { Profile::Debug } else { Profile::Release };
    if !options.built {
        product::build(profile)?;
    }
    let area = options.area;
    let wanted = Options { rounds: options.rounds, only: options.only.clone(), profile };
    let names = area.names();
    let unknown = wanted.only.iter().find(|only| {
        let begins = |name: &&str| name.starts_with(only.as_str());
        !names.iter().any(begins)
    });
    if let Some(unknown) = unknown {
        bail!("no figure begins with {unknown}; there are {}", names.join(", "));
    }
    let results = area.measure(&wanted)?;
    print(&results.figures, options.json)?;
    let whole = options.only.is_empty() && !options.debug;
    let docs = if whole { checkout().join("docs") } else { target_dir().join("bench") };
    std::fs::create_dir_all(&docs)?;
    let page = bench::report::write(area, &results, &docs)?;
    note(&format!("{} is written", page.display()));
    if !results.failures.is_empty() {
        bail!("not everything could be measured:\n  {}", results.failures.join("\n  "));
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(figures: &[Figure], json: bool) -> Result<()> {
    for figure in figures {
        if json {
            println!("{}", serde_json::to_string(figure)?);
        } else {
            println!("{figure}");
        }
    }
    Ok(())
}
