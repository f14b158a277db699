//! `docs/conformance.md` against the tests: every numbered behaviour has a row, every test that a
//! row names is there, and every test that carries a number is named in that number's row.
//!
//! ```text
//! docs/conformance.md ──rows──┐
//!                             ├──> complaints
//! *.rs, scenarios ───proofs───┘
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

/// The table, below the checkout.
const TABLE: &str = "docs/conformance.md";
/// Folders below the checkout whose sources have tests.
const SOURCES: [&str; 5] = ["agent", "cni", "control-plane", "ebpf", "tests"];
/// Folder of the scenario files, each of which is one proof; its first line has its numbers.
const SCENARIOS: &str = "agent/tests/scenarios";
/// What a row without a test has to begin with.
const REASONS: [&str; 3] = ["Later: ", "Not ours: ", "By design: "];
/// Numbers that must have a row, from and to: behaviours, divergences, reliability, and those of
/// orchestration from labels to deployments. Others have one when a test carries them.
const LISTS: [(char, u32, u32); 4] =
    [('B', 1, 140), ('V', 1, 12), ('R', 1, 12), (ORCHESTRATION, 54, 74)];
/// The list of an orchestrator's behaviours: its tests begin with `inv_`, and numbers without a
/// letter.
const ORCHESTRATION: char = 'I';

/// A behaviour's number: list, number, and the letter of one that was put in between (B79b).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Number(char, u32, Option<char>);

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(list, number, letter) = self;
        write!(f, "{list}{number}")?;
        letter.map_or(Ok(()), |letter| write!(f, "{letter}"))
    }
}

/// Reads `b26`, `B26`, `b08` or `b79b`.
fn number(word: &str) -> Option<Number> {
    let mut letters = word.chars();
    let list = letters.next()?.to_ascii_uppercase();
    let rest = letters.as_str();
    let digits = rest.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let letter = match rest.get(digits.len()..)?.as_bytes() {
        [] => None,
        [letter] => Some(char::from(*letter)),
        _ => return None,
    };
    let number = digits.parse().ok().filter(|_| digits.len() <= 3)?;
    matches!(list, 'B' | 'D' | 'F' | ORCHESTRATION | 'P' | 'R' | 'U' | 'V')
        .then_some(Number(list, number, letter))
}

/// The numbers at the start of a test's name: `b08_b09_…` two, `b20_to_b46_…` twenty-seven,
/// `inv_66_71_…` two of orchestration.
fn numbers(name: &str) -> Vec<Number> {
    if let Some(rest) = name.strip_prefix("inv_") {
        let numbers = rest.split('_').map_while(|word| word.parse().ok());
        return numbers.map(|number| Number(ORCHESTRATION, number, None)).collect();
    }
    let mut found: Vec<Number> = Vec::new();
    let mut words = name.strip_prefix("soak_").unwrap_or(name).split('_').peekable();
    while let Some(word) = words.next() {
        if let Some(next) = number(word) {
            found.push(next);
            continue;
        }
        let last = words.peek().and_then(|word| number(word));
        let range = found.last().copied().zip(last).filter(|_| word == "to");
        let Some((Number(list, from, None), Number(same, to, None))) = range else { break };
        if list != same {
            break;
        }
        found.extend((from + 1..to).map(|between| Number(list, between, None)));
    }
    found
}

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    number: Number,
    /// What proves it: names of tests and of scenario files.
    proofs: BTreeSet<String>,
    /// The whole last column.
    text: String,
}

/// The rows of the page's tables; what is no row of a number is prose.
fn rows(page: &str) -> Vec<Row> {
    let row = |line: &str| {
        let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        let (number, text) = (number(cells.first()?)?, *cells.get(2)?);
        let quoted = text.split('`').skip(1).step_by(2).map(str::to_owned);
        Some(Row { number, proofs: quoted.collect(), text: text.to_owned() })
    };
    page.lines().filter_map(row).collect()
}

/// The names of the tests in a source: functions below a `#[test]`, and the cluster's checks,
/// which are entries of a list.
fn tests(source: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut test = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            test = true;
        } else if let Some(name) = function(line) {
            if test {
                found.push(name);
            }
            test = false;
        } else if let Some((_, entry)) = line.split_once("(\"") {
            found.extend(
                entry.split_once("\", ").map(|(name, _)| name).filter(|name| is_name(name)),
            );
        }
    }
    found
}

fn function(line: &str) -> Option<&str> {
    let line = line.strip_prefix("async ").unwrap_or(line);
    line.strip_prefix("fn ")?.split('(').next()
}

fn is_name(text: &str) -> bool {
    text.contains('_')
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// What proves behaviours, by name, and the numbers of these.
type Proofs = BTreeMap<String, Vec<Number>>;

/// What is wrong between the page and the proofs that there are.
fn compare(page: &str, proofs: &Proofs) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut table: BTreeMap<Number, Row> = BTreeMap::new();
    for row in rows(page) {
        let number = row.number;
        for missing in row.proofs.iter().filter(|name| !proofs.contains_key(*name)) {
            complaints.push(format!("{TABLE}: {number} names `{missing}`, which is no test"));
        }
        if row.proofs.is_empty() && !REASONS.iter().any(|reason| row.text.starts_with(reason)) {
            let reasons = REASONS.map(|reason| format!("{:?}", reason.trim())).join(", ");
            complaints.push(format!(
                "{TABLE}: {number} names no test, and its reason begins with none of {reasons}"
            ));
        }
        if table.insert(number, row).is_some() {
            complaints.push(format!("{TABLE}: {number} has two rows"));
        }
    }
    let of_list = |(list, from, to): &(char, u32, u32)| {
        let list = *list;
        (*from..=*to).map(move |number| Number(list, number, None))
    };
    let listed = LISTS.iter().flat_map(of_list);
    for number in listed.filter(|number| !table.contains_key(number)) {
        complaints.push(format!("{TABLE}: {number} has no row"));
    }
    for (proof, numbers) in proofs {
        let unnamed = numbers
            .iter()
            .filter(|number| table.get(number).is_none_or(|row| !row.proofs.contains(proof)));
        for number in unnamed {
            complaints.push(format!("{TABLE}: the row of {number} has to name `{proof}`"));
        }
    }
    complaints
}

/// The numbers in the first line of a scenario: `about: b71 b72, session affinity`.
fn about(scenario: &str) -> Vec<Number> {
    let line = scenario.lines().next().unwrap_or_default();
    let numbered = line.strip_prefix("about: ").and_then(|text| text.split(',').next());
    numbered.unwrap_or_default().split_whitespace().map_while(number).collect()
}

/// The page with every numbered test named in the rows of its numbers. What has no row, and names
/// that are no test, are left to people.
fn amend(page: &str, proofs: &Proofs) -> String {
    let amended = page.split_inclusive('\n').map(|line| {
        let mut line = line.to_owned();
        let Some(Row { number, proofs: named, text }) = rows(&line).pop() else { return line };
        let unnamed = |(name, numbers): &(&String, &Vec<Number>)| {
            numbers.contains(&number) && !named.contains(*name)
        };
        for (name, _) in proofs.iter().filter(unnamed) {
            match line.rfind('`') {
                Some(end) => line.insert_str(end + 1, &format!(", `{name}`")),
                None => line = line.replacen(&text, &format!("`{name}`. {text}"), 1),
            }
        }
        line
    });
    amended.collect()
}

/// Names every numbered test of the checkout at `root` in its table.
pub fn name_tests(root: &Path) -> io::Result<()> {
    let page = fs::read_to_string(root.join(TABLE))?;
    let amended = amend(&page, &proofs(root)?);
    if amended == page { Ok(()) } else { fs::write(root.join(TABLE), amended) }
}

/// Every complaint about the table of the checkout at `root`.
pub fn complaints(root: &Path) -> io::Result<Vec<String>> {
    let page = fs::read_to_string(root.join(TABLE))?;
    Ok(compare(&page, &proofs(root)?))
}

/// The tests and scenarios of the checkout at `root`.
fn proofs(root: &Path) -> io::Result<Proofs> {
    let mut proofs = Proofs::new();
    for folder in SOURCES {
        collect(&root.join(folder), &mut proofs)?;
    }
    for entry in fs::read_dir(root.join(SCENARIOS))? {
        let entry = entry?;
        let text = fs::read_to_string(entry.path())?;
        proofs.insert(entry.file_name().to_string_lossy().into_owned(), about(&text));
    }
    Ok(proofs)
}

/// Adds the tests of every source in and below a folder.
fn collect(folder: &Path, proofs: &mut Proofs) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, proofs)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(&path)?;
            proofs.extend(tests(&source).into_iter().map(|name| (name.to_owned(), numbers(name))));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
