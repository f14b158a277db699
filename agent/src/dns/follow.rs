//! The file beside the configuration: read, validated and put in force while the agent runs. A
//! file that can't be used leaves what was in force.

use hickory_proto::rr::Name;
use tokio::task::spawn_blocking;

use super::{
    config::{Config, Source, served_addresses},
    corefile::{self, Corefile, Machine, Surroundings as _},
    meaning::{Meaning, Served},
    native, origin, resolv_conf,
    route::Route,
};

/// What a file came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Followed {
    /// The configuration with what the file says.
    pub config: Config,
    /// What of the file is left out.
    pub warnings: Vec<String>,
}

/// Reads the file that `config` names, if it names one.
pub async fn look(config: &Config, domain: &Name) -> Result<Followed, String> {
    let (config, domain) = (config.clone(), domain.clone());
    spawn_blocking(move || read(config, domain))
        .await
        .map_err(|error| format!("the file was not read: {error}"))?
}

/// What of the file that `config` names is left out; an error where it can't be used.
pub fn check(config: &Config) -> Result<Vec<String>, String> {
    let domain = origin(&config.cluster_domain).map_err(|error| error.to_string())?;
    read(config.clone(), domain).map(|followed| followed.warnings)
}

fn read(mut config: Config, domain: Name) -> Result<Followed, String> {
    match config.source.clone() {
        Source::Here => Ok(Followed { config, warnings: Vec::new() }),
        Source::ResolvConf(path) => {
            let servers = resolv_conf::name_servers(&path, |path| Machine.read(path).ok());
            let servers = servers.ok_or_else(|| format!("{} can't be read", path.display()))?;
            config.routes = vec![Route::to(servers)];
            Ok(Followed { config, warnings: Vec::new() })
        }
        Source::Corefile(path) => {
            let served = served(&config, domain);
            let read = corefile::read(&path, &served, &Machine);
            let Corefile { blocks, warnings } = read.map_err(|error| error.to_string())?;
            let config = Meaning::of(blocks, &served).applied(&config);
            Ok(Followed { config, warnings: warnings.iter().map(ToString::to_string).collect() })
        }
        Source::Blocks(written) => {
            let served = served(&config, domain);
            let (blocks, warnings) = native::read(&written, &served, &Machine)?;
            Ok(Followed { config: Meaning::of(blocks, &served).applied(&config), warnings })
        }
    }
}

/// What server blocks have to fit.
fn served(config: &Config, domain: Name) -> Served {
    Served {
        domain,
        port: config.port,
        addresses: served_addresses(config),
        connects_pods: config.connects_pods,
    }
}
