//! PodDisruptionBudgets: one of two bounds.

use super::invalid::Errors;
use super::object::Object;
use super::strategy::Strategy;

/// [`Strategy`] of budgets.
pub(super) struct Budgets;

impl Strategy for Budgets {
    fn validate(&self, object: &Object, errors: &mut Errors) {
        if object.at("/spec/minAvailable").is_some() && object.at("/spec/maxUnavailable").is_some()
        {
            let why = "minAvailable and maxUnavailable cannot be both set";
            errors.invalid("spec", object.at("/spec").cloned().unwrap_or_default(), why);
        }
    }
}
