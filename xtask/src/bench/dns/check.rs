//! That all servers say the same, seen by a foreign client, before any of them is measured.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};

use super::{
    pair::{ADDRESS, At},
    questions,
    seat::Seat,
};

/// What `dig` says of each name: the code, and the addresses in the order of their text.
type Answers = BTreeMap<String, (String, Vec<String>)>;

/// Compares a server's answers with what they must be: the address of every service, that a type
/// does not exist, and that a name does not.
pub fn answers(seat: &Seat) -> Result<()> {
    let first = questions::name(0);
    // One that is not there is not waited for a thousand times.
    ask(seat, "AAAA", [first.clone()])?;
    let names = questions::services().map(|(name, _)| name);
    let found = ask(seat, "A", names.chain([questions::MISSING.to_owned()]))?;
    for (name, address) in questions::services() {
        let expected = ("NOERROR".to_owned(), vec![address.to_string()]);
        same(seat, &found, &name, "A", &expected)?;
    }
    same(seat, &found, questions::MISSING, "A", &("NXDOMAIN".to_owned(), Vec::new()))?;
    let found = ask(seat, "AAAA", [first.clone()])?;
    same(seat, &found, &first, "AAAA", &("NOERROR".to_owned(), Vec::new()))
}

fn same(
    seat: &Seat,
    found: &Answers,
    name: &str,
    kind: &str,
    expected: &(String, Vec<String>),
) -> Result<()> {
    let found = found.get(name);
    ensure!(
        found == Some(expected),
        "{} says {found:?} of {name} {kind}, not {expected:?}",
        seat.label
    );
    Ok(())
}

/// What a server says of these names.
pub fn ask(seat: &Seat, kind: &str, names: impl IntoIterator<Item = String>) -> Result<Answers> {
    let names: Vec<String> = names.into_iter().collect();
    let path = seat.pair.folder()?.join("dig");
    let lines: Vec<String> = names.iter().map(|name| format!("{name}. {kind}")).collect();
    fs::write(&path, lines.join("\n") + "\n")
        .with_context(|| format!("can't write {}", path.display()))?;
    let (server, path) = (format!("@{ADDRESS}"), path.display().to_string());
    let format = ["+noall", "+comments", "+answer", "+tries=1", "+time=1"];
    let argv = ["dig", &server, "-f", &path].into_iter().chain(format);
    let argv: Vec<&str> = argv.collect();
    Ok(names.into_iter().zip(parse(&seat.pair.capture(At::Client, &argv)?)).collect())
}

/// Codes and addresses of all answers, one after the other.
fn parse(text: &str) -> Vec<(String, Vec<String>)> {
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once(", status: ") {
            let code = rest.split(',').next().unwrap_or_default();
            all.push((code.to_owned(), Vec::new()));
        } else if let [_, _, "IN", "A" | "AAAA", address] =
            line.split_whitespace().collect::<Vec<_>>()[..]
            && let Some((_, addresses)) = all.last_mut()
        {
            addresses.push(address.to_owned());
            addresses.sort();
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let text = ";; ->>HEADER<<- opcode: QUERY, status: NOERROR, id: 1\n;; ANSWER SECTION:\n\
                    a.example.\t5\tIN\tA\t192.0.2.2\na.example.\t5\tIN\tA\t192.0.2.1\n\
                    ;; ->>HEADER<<- opcode: QUERY, status: NXDOMAIN, id: 2\n";
        let found = parse(text);
        assert_eq!(found[0].0, "NOERROR");
        assert_eq!(found[0].1, ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(found[1], ("NXDOMAIN".to_owned(), Vec::new()));
    }
}
