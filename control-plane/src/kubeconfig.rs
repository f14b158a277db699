//! `mizzen-control-plane kubeconfig`: makes a kubeconfig for a user, with a certificate that the
//! cluster's CA signs. For who can read the control plane's data directory.

use std::path::PathBuf;

use crate::pki::{Authority, PkiError, write_private};

/// Arguments of `kubeconfig`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The control plane's data directory
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The user, such as system:node:NAME
    #[arg(long, value_name = "NAME")]
    pub user: String,
    /// The user's group, such as system:nodes
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// Where the user reaches the API server
    #[arg(long, value_name = "URL")]
    pub server: String,
    /// The file to write; only its owner may read it
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
}

/// Writes the kubeconfig.
pub fn run(args: &Args) -> Result<(), PkiError> {
    let authority = Authority::read(&args.data_dir.join("pki"))?;
    let text = authority.kubeconfig(&args.server, &args.user, args.group.as_deref())?;
    write_private(&args.output, &text)
}
