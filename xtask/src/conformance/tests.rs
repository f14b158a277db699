//! Numbers in names, and the page against the tests.

use super::*;

/// The names of numbers, for reading.
fn said(name: &str) -> Vec<String> {
    numbers(name).iter().map(ToString::to_string).collect()
}

#[test]
fn a_name_begins_with_its_numbers() {
    assert_eq!(said("b08_b09_v5_other_ports"), ["B8", "B9", "V5"]);
    assert_eq!(said("b79b_a_pod"), ["B79b"]);
    assert_eq!(said("b20_to_b23_who"), ["B20", "B21", "B22", "B23"]);
    assert_eq!(said("soak_r01_agents"), ["R1"]);
    assert_eq!(said("b47_without_b48"), ["B47"]);
    assert_eq!(said("inv_66_71_updates"), ["I66", "I71"]);
    for plain in ["a_socket", "f38x9_y", "dns_01_names", "cni_35_del", "b1234_x", "barrier_waits"] {
        assert!(said(plain).is_empty(), "{plain}");
    }
}

#[test]
fn tests_are_told_from_other_functions() {
    let source = r#"
        #[test]
        #[cfg(unix)]
        fn b01_one() {
            let helper = ("not this", 1);
        }
        fn b02_no_test() {}
        #[tokio::test(start_paused = true)]
        async fn b03_three() {}
        const CHECKS: &[Check] = &[
            ("b04_a_check", check),
        ];
    "#;
    assert_eq!(tests(source), ["b01_one", "b03_three", "b04_a_check"]);
}

#[test]
fn scenarios_have_their_numbers_in_the_first_line() {
    let text: Vec<String> =
        about("about: b71 v2, twice b72\nnode: n").iter().map(ToString::to_string).collect();
    assert_eq!(text, ["B71", "V2"]);
    assert!(about("about: nothing in particular").is_empty());
}

/// A page with a row for everything that needs one, but for those that `rows` gives.
fn page(rows: &[(&str, &str)]) -> String {
    let listed = LISTS
        .iter()
        .flat_map(|&(list, from, to)| (from..=to).map(move |number| Number(list, number, None)));
    let mut all: BTreeMap<String, &str> =
        listed.map(|number| (number.to_string(), "Later: it is an example")).collect();
    all.extend(rows.iter().map(|(number, text)| ((*number).to_owned(), *text)));
    let row = |(number, text)| format!("| {number} | something | {text} |\n");
    all.iter().map(row).collect::<Vec<_>>().concat()
}

#[test]
fn page_and_tests_name_each_other() {
    let proofs = ["b01_one", "b02_two", "plain"].map(|name| (name.to_owned(), numbers(name)));
    let proofs = Proofs::from(proofs);
    let good = [("B1", "`b01_one`"), ("B2", "`b02_two`, `plain`")];
    assert_eq!(compare(&page(&good), &proofs), Vec::<String>::new());
    let cases = [
        (vec![good[0], ("B2", "`b02_two` `gone`")], "B2 names `gone`, which is no test"),
        (vec![good[0], ("B2", "`plain`")], "the row of B2 has to name `b02_two`"),
        (vec![good[0], good[1], ("B3", "soon")], "B3 names no test"),
    ];
    for (rows, complaint) in cases {
        let said = compare(&page(&rows), &proofs);
        assert!(said.len() == 1 && said[0].contains(complaint), "{said:?}");
    }
    let without: String = page(&good)
        .lines()
        .filter(|line| !line.starts_with("| R12 "))
        .collect::<Vec<_>>()
        .join("\n");
    assert_eq!(compare(&without, &proofs), ["docs/conformance.md: R12 has no row"]);
    let twice = page(&good) + "| B1 | again | `b01_one` |\n";
    assert_eq!(compare(&twice, &proofs), ["docs/conformance.md: B1 has two rows"]);
}

#[test]
fn what_a_row_lacks_is_put_where_names_are() {
    let proofs =
        ["b01_b02_new", "b01_one", "v1_other"].map(|name| (name.to_owned(), numbers(name)));
    let page = "| B1 | one | `b01_one`. More: later |\nprose\n| B2 | two | Later: two |\n";
    let amended = "| B1 | one | `b01_one`, `b01_b02_new`. More: later |\nprose\n\
                   | B2 | two | `b01_b02_new`. Later: two |\n";
    assert_eq!(amend(page, &Proofs::from(proofs.clone())), amended);
    assert_eq!(amend(amended, &Proofs::from(proofs)), amended);
}

#[test]
fn the_page_of_this_checkout_is_right() {
    let complaints = complaints(&crate::checkout()).unwrap();
    assert!(complaints.is_empty(), "`cargo xtask lint --fix`:\n{}", complaints.join("\n"));
}
