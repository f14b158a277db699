//! `ListOptions`: which parameters of a list or a watch go together, as apimachinery says it.

use super::Call;
use super::status::{Failure, Result};
use crate::registry::invalid::Errors;

const EXACT: &str = "Exact";
const NOT_OLDER: &str = "NotOlderThan";

/// What the rules are about.
struct Options<'a> {
    version: &'a str,
    matching: &'a str,
    token: &'a str,
    /// Whether anything is said of initial events.
    initial: bool,
}

impl<'a> Options<'a> {
    fn of(call: &'a Call) -> Self {
        Self {
            version: call.params.text("resourceVersion"),
            matching: call.params.text("resourceVersionMatch"),
            token: call.params.text("continue"),
            initial: call.params.has("sendInitialEvents"),
        }
    }
}

/// Checks the parameters of a list, or of a deletion of what a list would have.
pub(super) fn check_list(call: &Call) -> Result<()> {
    let asked = Options::of(call);
    refuse(&list_errors(&asked))?;
    if !asked.token.is_empty() && !matches!(asked.version, "" | "0") {
        let why = "specifying resource version is not allowed when using continue";
        return Err(Failure::bad_request(why));
    }
    Ok(())
}

/// Checks the parameters of a watch.
pub(super) fn check_watch(call: &Call) -> Result<()> {
    refuse(&watch_errors(&Options::of(call)))
}

/// Whether a list shows the very revision that it names: also a page of a list that says nothing
/// of it, by an old rule.
pub(super) fn is_exact(call: &Call) -> Result<bool> {
    let limited = call.params.integer("limit")?.is_some_and(|limit| limit > 0);
    let matching = call.params.text("resourceVersionMatch");
    Ok(matching == EXACT || (matching.is_empty() && limited))
}

fn refuse(errors: &Errors) -> Result<()> {
    if errors.is_empty() { Ok(()) } else { Err(Failure::invalid_options("ListOptions", errors)) }
}

fn list_errors(asked: &Options<'_>) -> Errors {
    let mut errors = Errors::default();
    let field = "resourceVersionMatch";
    if !asked.matching.is_empty() {
        if asked.version.is_empty() {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            errors.forbidden(field, why);
        }
        if !asked.token.is_empty() {
            errors.forbidden(field, "resourceVersionMatch is forbidden when continue is provided");
        }
        if !matches!(asked.matching, EXACT | NOT_OLDER) {
            errors.not_supported(field, asked.matching, &[EXACT, NOT_OLDER, ""]);
        }
        if (asked.matching, asked.version) == (EXACT, "0") {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            errors.forbidden(field, why);
        }
    }
    if asked.initial {
        errors.forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list");
    }
    errors
}

fn watch_errors(asked: &Options<'_>) -> Errors {
    let mut errors = Errors::default();
    let field = "resourceVersionMatch";
    if asked.initial && asked.matching != NOT_OLDER {
        let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        errors.forbidden(field, why);
    }
    if !asked.matching.is_empty() {
        if !asked.initial {
            let why =
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.forbidden(field, why);
        }
        if asked.matching != NOT_OLDER {
            errors.not_supported(field, asked.matching, &[NOT_OLDER]);
        }
        if !asked.token.is_empty() {
            errors.forbidden(field, "resourceVersionMatch is forbidden when continue is provided");
        }
    }
    errors
}
