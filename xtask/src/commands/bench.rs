//! `cargo xtask bench`: side-by-side benchmarks on a cluster of its own.

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{
    bench::{self, Figure},
    product::{self, Profile},
    step::note,
    toolchain,
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
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Area {
    /// Service load balancing
    Services,
}

/// Measures, writes docs/benchmarks.md, and prints the figures.
pub fn run(options: &Bench) -> Result<()> {
    toolchain::require_root("`cargo xtask bench`")?;
    toolchain::ensure_tools(toolchain::CLUSTER_TOOLS)?;
    toolchain::ensure_tools(toolchain::BENCH_TOOLS)?;
    product::build(Profile::Release)?;
    let figures = match options.area {
        Area::Services => bench::services::measure(options.rounds)?,
    };
    bench::report::write(&figures)?;
    print(&figures, options.json)?;
    note("docs/benchmarks.md is written");
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
