//! The page docs/cli.md, made of the command lines themselves: `cargo xtask lint` compares, and writes
//! it with `--fix`.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory as _};

use super::{Agent, inspect::Mizzen};
use crate::config;

/// Stands above all.
const INTRODUCTION: &str = "\
# Command lines

Made from the programs themselves by `cargo xtask lint --fix`; don't edit it.

`mizzen` is for operators, on a node; [operations](operations.md) says what its answers mean. `mizzen-agent` is what a supervisor starts; its settings are in [configuration](configuration.md).
";

/// The page.
pub(super) fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    for mut program in [Mizzen::command(), Agent::command()] {
        program.build();
        describe(&mut page, &program, &mut vec![program.get_name().to_owned()], &[]);
    }
    page
}

/// A command and those below it; `above` has the arguments that commands above took for it too.
fn describe(page: &mut String, command: &Command, path: &mut Vec<String>, above: &[String]) {
    let level = "#".repeat((path.len() + 1).min(4));
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let _infallible = write!(page, "\n{level} `{}`\n\n{}\n", path.join(" "), sentence(&about));
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").split_whitespace().collect::<Vec<_>>();
    let _infallible = write!(page, "\n```text\n{}\n```\n", usage.join(" "));
    let own = command.get_arguments().filter(|arg| is_told(arg, path, above));
    let rows: Vec<_> = own.map(row).collect();
    if !rows.is_empty() {
        let _infallible = write!(page, "\n| argument | |\n|---|---|\n{}", rows.concat());
    }
    if let Some(after) = command.get_after_help() {
        let _infallible = write!(page, "\n```text\n{after}\n```\n");
    }
    let everywhere = command.get_arguments().filter(|arg| arg.is_global_set());
    let everywhere: Vec<_> = everywhere.map(|arg| arg.get_id().to_string()).collect();
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        if below.get_name() == "help" {
            continue;
        }
        path.push(below.get_name().to_owned());
        describe(page, below, path, &everywhere);
        path.pop();
    }
}

/// Not what `above` takes for all below it, what every command takes, or the agent's settings, which
/// have a page of their own.
fn is_told(arg: &Arg, path: &[String], above: &[String]) -> bool {
    let id = arg.get_id().as_str();
    let takes_settings = path[0] == "mizzen-agent"
        && path.get(1).is_some_and(|verb| verb == "run" || verb == "config");
    let is_setting = takes_settings && config::is_setting(id);
    let told_above = above.iter().any(|told| told == id);
    !(is_setting || told_above || ["help", "version"].contains(&id) || arg.is_hide_set())
}

fn row(arg: &Arg) -> String {
    let values = arg.get_value_names().unwrap_or_default();
    let takes = arg.get_action().takes_values();
    let value = values.iter().map(|name| format!("<{name}>")).collect::<Vec<_>>().join(" ");
    let name = match (arg.get_long(), arg.get_short()) {
        (Some(long), Some(short)) => format!("-{short}, --{long}"),
        (Some(long), None) => format!("--{long}"),
        (None, _) => String::new(),
    };
    let name = if takes { format!("{name} {value}") } else { name };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let defaults = arg.get_default_values().iter().filter(|_| takes).map(|it| it.to_string_lossy());
    let default = defaults.collect::<Vec<_>>().join(", ");
    let default =
        if default.is_empty() { String::new() } else { format!(" (default `{default}`)") };
    format!("| `{}` | {}{default} |\n", name.trim(), help.replace('|', "\\|"))
}

/// With its stop.
fn sentence(text: &str) -> String {
    if text.is_empty() || text.ends_with('.') { text.to_owned() } else { format!("{text}.") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_place_and_arguments() {
        let page = page();
        for heading in
            ["## `mizzen`", "### `mizzen why`", "#### `mizzen migrate apply`", "## `mizzen-agent`"]
        {
            assert_eq!(page.matches(&format!("\n{heading}\n")).count(), 1, "{heading}\n{page}");
        }
        for row in
            ["| `--limit <LIMIT>` |", "| `--state-dir <STATE_DIR>` |", "| `--kubeconfig <FILE>` |"]
        {
            assert!(page.contains(row), "{row}\n{page}");
        }
        assert!(!page.contains("--vxlan-port"), "that is a setting");
    }
}
