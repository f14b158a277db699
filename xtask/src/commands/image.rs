//! `cargo xtask image`: the container image of the agent.

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    image::node::SIZE_MAX,
    product::{self, Profile},
};

/// Options of `image`.
#[derive(Args, Debug)]
pub struct Image {
    /// Of what is quick to build: large, and slow to run
    #[arg(long)]
    debug: bool,
    /// Print one object a line on standard output, as the benchmarks do
    #[arg(long)]
    json: bool,
}

/// Builds the image and says where it is.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub fn run(options: &Image) -> Result<()> {
    let profile = if options.debug { Profile::Debug } else { Profile::Release };
    let made = product::build_node_image(profile)?;
    // A tenth of a megabyte is exact enough.
    let megabytes = f64::from(u32::try_from(made.size / 1000).unwrap_or(u32::MAX)) / 1e3;
    if options.json {
        let value = serde_json::json!({
            "area": "services", "name": "image-size", "value": megabytes, "unit": "MB",
            "contender": "mizzen", "rounds": 1, "spread": 0.0,
        });
        println!("{value}");
    } else {
        println!("{}", made.image.name);
        println!("  digest      {}", made.image.digest);
        println!("  tar file    {}", made.image.file.display());
        println!("  OCI layout  {}", made.layout.display());
        println!("  SBOM        {}", made.sbom.display());
        println!(
            "  size        {megabytes:.1} MB compressed (at most {} MB)",
            SIZE_MAX / 1_000_000
        );
        println!("Import it: ctr --namespace k8s.io images import {}", made.image.file.display());
    }
    if profile == Profile::Release && made.size > SIZE_MAX {
        bail!("the image has {megabytes:.1} MB, more than {} MB", SIZE_MAX / 1_000_000);
    }
    Ok(())
}
