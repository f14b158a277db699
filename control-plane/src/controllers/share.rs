//! Limits that are a number of pods or a percentage of those that are wanted.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What becomes of a part of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    /// It counts as one.
    Up,
    /// It counts as none.
    Down,
}

/// The pods that a limit stands for, of `wanted`; `None` where there is no limit. What can't be
/// read, and the API refuses, is none.
pub(crate) fn of(limit: Option<&IntOrString>, wanted: i32, round: Round) -> Option<i32> {
    Some(match limit? {
        IntOrString::Int(pods) => (*pods).max(0),
        IntOrString::String(text) => {
            let percentage = text.strip_suffix('%').and_then(|text| text.parse().ok());
            percentage.map_or(0, |percentage| percent(percentage, wanted, round))
        }
    })
}

/// That percentage of `wanted`.
pub(crate) fn percent(percentage: u64, wanted: i32, round: Round) -> i32 {
    let hundredths = u64::from(wanted.unsigned_abs()).saturating_mul(percentage);
    let pods = match round {
        Round::Up => hundredths.div_ceil(100),
        Round::Down => hundredths / 100,
    };
    i32::try_from(pods).unwrap_or(i32::MAX)
}
