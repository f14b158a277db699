//! What the documentation shows to be typed: blocks marked `console`, a command after each `$ `. The
//! cluster test runs those of [`PAGES`] as they stand, but where a block says why it is not run, as
//! every block of commands elsewhere has to.

use std::path::Path;

/// Pages whose blocks are run.
pub const PAGES: [&str; 4] = ["README.md", "docs/guide.md", "docs/install.md", "docs/migration.md"];
/// Begins the comment that says why a block is not run; it stands on the line before.
const REASON: &str = "<!-- not run: ";
/// Marks of blocks with commands.
const COMMANDS: [&str; 4] = ["console", "sh", "bash", "shell"];

/// A fenced block of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Block<'a> {
    /// The line of its fence, from 1.
    line: usize,
    /// What the fence says it is.
    mark: &'a str,
    /// The line before, where it is no empty one.
    before: &'a str,
    lines: Vec<&'a str>,
}

impl Block<'_> {
    /// Whether it says why it is not run.
    fn is_excused(&self) -> bool {
        self.before.strip_prefix(REASON).is_some_and(|why| why.trim().len() > 3)
    }
}

fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    let (mut open, mut before) = (false, "");
    for (nth, line) in text.lines().enumerate() {
        match line.trim_start().strip_prefix("```") {
            Some(_) if open => open = false,
            Some(mark) => {
                open = true;
                blocks.push(Block { line: nth + 1, mark: mark.trim(), before, lines: Vec::new() });
            }
            None if open => blocks.last_mut().into_iter().for_each(|block| block.lines.push(line)),
            None => {}
        }
        before = line.trim();
    }
    blocks
}

/// The commands of a page that are to be run, with their lines.
pub fn commands(text: &str) -> Vec<(usize, String)> {
    let run = blocks(text).into_iter();
    let run = run.filter(|block| block.mark == "console" && !block.is_excused());
    run.flat_map(|block| {
        let lines = block.lines.into_iter().zip(block.line + 1..);
        lines.filter_map(|(line, nth)| {
            Some((nth, line.trim_start().strip_prefix("$ ")?.trim().to_owned()))
        })
    })
    .collect()
}

/// Blocks that nobody can tell what they are, or why they are not run.
pub fn unexplained(file: &Path, text: &str) -> Vec<String> {
    let is_run = PAGES.iter().any(|page| Path::new(page) == file);
    let complaint = |block: Block<'_>| {
        let at = format!("{}:{}", file.display(), block.line);
        if block.mark.is_empty() {
            Some(format!("{at}: the block does not say what it is"))
        } else if COMMANDS.contains(&block.mark)
            && !block.is_excused()
            && !(is_run && block.mark == "console")
        {
            Some(format!("{at}: the commands are not run, and no `{REASON}…-->` says why"))
        } else {
            None
        }
    };
    blocks(text).into_iter().filter_map(complaint).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# A\n\n```console\n$ one --two\nanswer\n$ three\n```\n\n\
                        <!-- not run: it takes a kubeadm -->\n```sh\nfour\n```\n\n```text\nx\n```\n";

    #[test]
    fn commands_are_what_stands_behind_a_prompt_in_blocks_that_are_run() {
        let expected = [(4, "one --two".to_owned()), (6, "three".to_owned())];
        assert_eq!(commands(TEXT), expected);
    }

    #[test]
    fn a_block_that_says_why_it_is_not_run_is_not() {
        let excused = "<!-- not run: it takes a kubeadm -->\n```console\n$ no\n```\n\n\
                       1. A list:\n   ```console\n   $ yes\n   ```\n";
        assert_eq!(commands(excused), [(8, "yes".to_owned())]);
        assert_eq!(unexplained(Path::new("README.md"), excused), [""; 0]);
    }

    #[test]
    fn a_block_that_is_not_run_says_why() {
        let of = |file: &str, text: &str| unexplained(Path::new(file), text);
        assert_eq!(of("README.md", TEXT), [""; 0]);
        assert_eq!(of("docs/other.md", TEXT).len(), 1, "the first is not run there");
        let without = TEXT.replace("<!-- not run: it takes a kubeadm -->", "");
        assert!(of("README.md", &without)[0].starts_with("README.md:10:"), "{without}");
        assert_eq!(of("README.md", &TEXT.replace("it takes a kubeadm ", "")).len(), 1);
        assert_eq!(of("README.md", "```\nx\n```\n").len(), 1);
    }
}
