//! The load of `cargo xtask bench control-plane`: the same work for an API server, for its store,
//! and for an etcd beside them. Prints one line of JSON.

#![expect(clippy::print_stdout, reason = "the result of the program")]

mod objects;
mod puts;
mod sample;
mod start;
mod watches;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};

/// Load for the control plane and what it is compared with
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Durable writes by many at once, without an API server
    Puts(Puts),
    /// Creations by many at once, and one who reads
    Creates(Puts),
    /// Watches, of which some are concerned
    Watches(Watches),
    /// Pods and nodes, and then all of them listed
    Objects(Objects),
    /// Starts within this process, one after the other
    Start(Start),
    /// A data folder of so many megabytes
    Fill(Fill),
}

/// Whom the load is for.
#[derive(Args, Clone)]
#[group(required = true, multiple = false)]
struct Target {
    /// The embedded store, in this process, below a folder
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// etcd
    #[arg(long, value_name = "URL")]
    etcd: Option<String>,
    /// An API server
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

#[derive(Args)]
struct Puts {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 64)]
    writers: usize,
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
}

impl Puts {
    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

#[derive(Args)]
struct Watches {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 1000)]
    watchers: usize,
    /// How many of them a change concerns
    #[arg(long, default_value_t = 10)]
    matching: usize,
    #[arg(long, default_value_t = 500)]
    changes: usize,
    /// Changes per second
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// The server, whose CPU time is counted
    #[arg(long)]
    pid: u32,
}

#[derive(Args)]
struct Objects {
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    #[arg(long, default_value_t = 100_000)]
    pods: usize,
    #[arg(long, default_value_t = 5_000)]
    nodes: usize,
}

#[derive(Args)]
struct Start {
    /// With this data folder; else in memory
    #[arg(long)]
    dir: Option<PathBuf>,
    #[arg(long, default_value_t = 5)]
    times: u32,
}

#[derive(Args)]
struct Fill {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long, default_value_t = 100)]
    megabytes: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let sample = match Cli::parse().work {
        Work::Puts(options) => match &options.target {
            Target { store: Some(folder), .. } => puts::embedded(folder, &options).await?,
            Target { etcd: Some(url), .. } => puts::etcd(url, &options, false).await?,
            _ => bail!("puts go to a store or to etcd"),
        },
        Work::Creates(options) => match &options.target {
            Target { kubeconfig: Some(file), .. } => puts::api(file, &options).await?,
            Target { etcd: Some(url), .. } => puts::etcd(url, &options, true).await?,
            _ => bail!("creations go to an API server or to etcd"),
        },
        Work::Watches(options) => match &options.target {
            Target { kubeconfig: Some(file), .. } => watches::api(file, &options).await?,
            Target { etcd: Some(url), .. } => watches::etcd(url, &options).await?,
            _ => bail!("an API server and etcd have watches"),
        },
        Work::Objects(options) => objects::load(&options).await?,
        Work::Start(options) => start::measure(&options).await?,
        Work::Fill(options) => start::fill(&options).await?,
    };
    println!("{}", serde_json::to_string(&sample)?);
    Ok(())
}
