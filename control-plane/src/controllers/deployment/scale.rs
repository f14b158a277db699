//! Scaling a deployment: also in the middle of a rollout, in proportion to the sets' sizes.

use super::family::{Family, Member};

/// Whether the deployment's replicas have changed since its active sets were scaled.
pub(super) fn is_due(family: &Family<'_>) -> bool {
    let wanted = family.wanted();
    let mut active = family.all().filter(|member| member.replicas() > 0);
    active.any(|member| member.desired_before().is_some_and(|desired| desired != wanted))
}

/// Gives the sets the sizes that the deployment's replicas ask for, without going on with a
/// rollout.
pub(super) fn scale(family: &mut Family<'_>) {
    let wanted = family.wanted();
    if let Some(only) = only_or_latest(family) {
        only.scale(family, wanted);
        return;
    }
    let saturated = family.new.as_ref().is_some_and(|new| {
        new.replicas() == wanted
            && new.desired_before() == Some(wanted)
            && new.available() == wanted
    });
    if saturated {
        for index in 0..family.old.len() {
            if family.old[index].replicas() > 0 {
                family.scale_old(index, 0);
            }
        }
    } else if family.is_rolling() {
        proportionally(family);
    }
}

/// A set by its place in the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    New,
    Old(usize),
}

impl Place {
    fn member<'f>(self, family: &'f Family<'_>) -> Option<&'f Member> {
        match self {
            Self::New => family.new.as_ref(),
            Self::Old(index) => family.old.get(index),
        }
    }

    fn scale(self, family: &mut Family<'_>, replicas: i32) {
        match self {
            Self::New => family.scale_new(replicas),
            Self::Old(index) => family.scale_old(index, replicas),
        }
    }
}

/// The only set that has replicas; if none has, the new one, else the latest; `None` if several
/// have.
fn only_or_latest(family: &Family<'_>) -> Option<Place> {
    let mut active = active(family).into_iter();
    match (active.next(), active.next()) {
        (Some(only), None) => Some(only),
        (Some(_), Some(_)) => None,
        (None, _) if family.new.is_some() => Some(Place::New),
        (None, _) => family.old.len().checked_sub(1).map(Place::Old),
    }
}

fn active(family: &Family<'_>) -> Vec<Place> {
    let old = (0..family.old.len()).map(Place::Old);
    let places = old.chain([Place::New]);
    places
        .filter(|place| place.member(family).is_some_and(|member| member.replicas() > 0))
        .collect()
}

/// Spreads the difference over all active sets in proportion to their sizes, so that the risk of
/// a rollout that was begun neither grows nor shrinks. What rounding leaves goes to the largest.
fn proportionally(family: &mut Family<'_>) {
    let wanted = family.wanted();
    let allowed = if wanted > 0 { family.maximum() } else { 0 };
    let mut places = active(family);
    let total: i32 =
        places.iter().filter_map(|place| place.member(family)).map(Member::replicas).sum();
    let to_add = allowed - total;
    // Largest first; among equals the newest grows first and the oldest shrinks first.
    let rank = |place: &Place| match place {
        Place::New => usize::MAX,
        Place::Old(index) => *index,
    };
    places.sort_by(|one, other| {
        let size = |place: &Place| place.member(family).map_or(0, Member::replicas);
        let by_age = rank(one).cmp(&rank(other));
        let by_age = if to_add > 0 { by_age.reverse() } else { by_age };
        size(other).cmp(&size(one)).then(by_age)
    });
    let mut added = 0;
    let mut sizes = Vec::with_capacity(places.len());
    for place in places {
        let Some(member) = place.member(family) else { continue };
        let step = proportion(family, member, to_add, added);
        added += step;
        sizes.push((place, member.replicas() + step));
    }
    if let Some((_, largest)) = sizes.first_mut() {
        *largest = (*largest + to_add - added).max(0);
    }
    for (place, size) in sizes {
        place.scale(family, size);
    }
}

/// The set's share of what is to be added, of which `added` is given out already.
fn proportion(family: &Family<'_>, member: &Member, to_add: i32, added: i32) -> i32 {
    let left = to_add - added;
    if member.replicas() == 0 || left == 0 {
        return 0;
    }
    let share = share(family, member);
    if to_add > 0 { share.min(left) } else { share.max(left) }
}

fn share(family: &Family<'_>, member: &Member) -> i32 {
    let replicas = member.replicas();
    if family.wanted() == 0 {
        return -replicas;
    }
    let told = family.deployment.status.as_ref().and_then(|status| status.replicas);
    let before = member.maximum_before().filter(|maximum| *maximum > 0).or(told).unwrap_or(0);
    if before == 0 {
        return 0;
    }
    let product = i64::from(replicas) * i64::from(family.maximum());
    // Rounded to the nearest, halves up; all numbers are positive.
    let size = (2 * product + i64::from(before)) / (2 * i64::from(before));
    i32::try_from(size).unwrap_or(i32::MAX) - replicas
}
