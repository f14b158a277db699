//! `mizzen man DIR`: the manual pages of both programs, a page for each command, as they are parsed.

use std::{fs, path::Path};

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::{Agent, inspect::Mizzen};

/// Writes them.
pub(super) fn write(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
    for command in [Mizzen::command(), Agent::command()] {
        let name = command.get_name().to_owned();
        clap_mangen::generate_to(command, folder)
            .with_context(|| format!("write the pages of {name} to {}", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        for page in ["mizzen.1", "mizzen-flows.1", "mizzen-log-set.1", "mizzen-agent-run.1"] {
            let text = fs::read_to_string(folder.path().join(page)).unwrap();
            assert!(text.contains(".SH NAME") || text.contains(".SH \"NAME\""), "{page}: {text}");
        }
        let flows = fs::read_to_string(folder.path().join("mizzen-flows.1")).unwrap();
        assert!(flows.contains("follow"), "{flows}");
    }
}
