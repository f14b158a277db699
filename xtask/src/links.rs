//! Links of the documentation: to files of the repository, and to headings in them, as GitHub names
//! those. Where links to other places lead is not asked: lint calls nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// What is where a link leads to.
enum Target {
    Missing,
    /// A page, with its text.
    Page(String),
    /// A folder, or a file whose headings nobody knows.
    Other,
}

fn look(path: &Path) -> Target {
    match path.extension() {
        _ if !path.exists() => Target::Missing,
        Some(extension) if extension == "md" => {
            fs::read_to_string(path).map_or(Target::Missing, Target::Page)
        }
        _ => Target::Other,
    }
}

/// Links of a Markdown file, which is in `folder`, to files or headings that are not there.
pub(crate) fn dead(file: &Path, folder: &Path, text: &str) -> Vec<String> {
    dead_by(file, text, |path| look(&folder.join(path)))
}

fn dead_by(file: &Path, text: &str, look: impl Fn(&str) -> Target) -> Vec<String> {
    let mut seen = BTreeMap::new();
    for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        if link.contains("://") || link.starts_with("mailto:") {
            continue;
        }
        let (path, heading) = link.split_once('#').unwrap_or((link, ""));
        let target = if path.is_empty() { Target::Page(text.to_owned()) } else { look(path) };
        let fault = match target {
            Target::Missing => "there is no such file",
            Target::Page(page) if !heading.is_empty() && !anchors(&page).contains(heading) => {
                "there is no such heading"
            }
            Target::Page(_) | Target::Other => continue,
        };
        seen.insert(link, format!("{}: dead link {link}: {fault}", file.display()));
    }
    seen.into_values().collect()
}

/// The names of a page's headings: lower case, without punctuation, hyphens for spaces; the second of a
/// name has `-1` behind it.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = BTreeSet::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            continue;
        }
        let title = line.trim_start_matches('#');
        let depth = line.len() - title.len();
        if is_code || !(1..=6).contains(&depth) || !title.starts_with(' ') {
            continue;
        }
        let name = slug(title);
        let before = times.entry(name.clone()).or_default();
        anchors.insert(if *before == 0 { name } else { format!("{name}-{before}") });
        *before += 1;
    }
    anchors
}

fn slug(title: &str) -> String {
    let kept = title.trim().chars().filter_map(|letter| match letter {
        ' ' | '-' => Some('-'),
        '_' => Some('_'),
        _ if letter.is_alphanumeric() => Some(letter),
        _ => None,
    });
    kept.flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str =
        "# The `first`, of all\n\n```sh\n# no heading\n```\n\n## Twice\n\n## Twice\n";

    fn look(path: &str) -> Target {
        match path {
            "page.md" => Target::Page(PAGE.to_owned()),
            "rules.yaml" => Target::Other,
            _ => Target::Missing,
        }
    }

    #[test]
    fn headings_are_named_as_github_names_them() {
        let expected = ["the-first-of-all", "twice", "twice-1"].map(str::to_owned);
        assert_eq!(anchors(PAGE), BTreeSet::from(expected));
    }

    #[test]
    fn links_lead_to_files_and_headings_that_are_there() {
        let of = |text: &str| dead_by(Path::new("docs/a.md"), text, look);
        for alive in [
            "[a](page.md)",
            "[a](page.md#twice-1)",
            "[a](rules.yaml#L1)",
            "[a](https://x.test/#y)",
            "## Here\n[a](#here)",
        ] {
            assert_eq!(of(alive), [""; 0], "{alive}");
        }
        let gone = "docs/a.md: dead link gone.md#x: there is no such file";
        assert_eq!(of("[a](gone.md#x) [b](gone.md#x)"), [gone]);
        for heading in ["[a](page.md#thrice)", "[a](page.md#no-heading)", "[a](#twice)"] {
            assert_eq!(of(heading).len(), 1, "{heading}");
        }
    }
}
