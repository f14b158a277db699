//! Which way a cluster is led: a run says so in an annotation of kube-proxy's DaemonSet, and again as
//! long as it goes on. Runs of the same way come to the same, and need not know of one another. Those of
//! opposite ways would undo each other's steps without end, and agents would start anew each time: the
//! later one does not begin, unless it is told to turn the other round, which then ends. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::{FRESH_S, WAY, plan::Way};
use crate::migrate::plan::Obstacle;

/// How old it may be before it is said again, in seconds.
const AGAIN_S: u64 = FRESH_S / 4;

/// What the annotation says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Direction {
    /// Which way.
    pub way: Way,
    /// The run that said so.
    pub by: String,
    /// When, in seconds after 1970.
    pub at: u64,
}

impl Direction {
    /// That of a DaemonSet. What can't be read is nobody's.
    pub fn of(set: &ObjectMeta) -> Option<Self> {
        let text = set.annotations.as_ref()?.get(WAY)?;
        serde_json::from_str(text).ok()
    }

    /// Writes it.
    pub fn write(&self, set: &mut ObjectMeta) -> Result<(), serde_json::Error> {
        let text = serde_json::to_string(self)?;
        set.annotations.get_or_insert_default().insert(WAY.to_owned(), text);
        Ok(())
    }

    /// Removes it without a trace.
    pub fn erase(set: &mut ObjectMeta) {
        if let Some(notes) = &mut set.annotations {
            notes.remove(WAY);
        }
        set.annotations = set.annotations.take().filter(|notes| !notes.is_empty());
    }

    fn is_fresh(&self, now_s: u64) -> bool {
        self.at.abs_diff(now_s) <= FRESH_S
    }
}

/// A run of `mizzen migrate`.
#[derive(Clone, Debug)]
pub struct Run {
    way: Way,
    by: String,
    turns_round: bool,
    /// When it last saw that it leads, in seconds after 1970; none where it has not begun.
    led_at: Option<u64>,
}

/// Whether a run leads the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stand {
    /// It does, or another one does the same way.
    Holds,
    /// It has to say so first.
    Claims,
    /// Another one leads it the other way.
    Contested(Obstacle),
}

impl Run {
    /// One that begins, by a name that tells it from others; `turns_round` says that a run of the other
    /// way does not keep it from that.
    pub fn new(way: Way, by: String, turns_round: bool) -> Self {
        Self { way, by, turns_round, led_at: None }
    }

    /// Which way it goes.
    pub fn way(&self) -> Way {
        self.way
    }

    /// Says that it leads the cluster: whoever goes the other way from now on turned it round.
    pub fn leads(&mut self, now_s: u64) {
        self.led_at = Some(now_s);
    }

    /// Whether it ever led the cluster.
    pub fn has_begun(&self) -> bool {
        self.led_at.is_some()
    }

    /// What it says of itself.
    pub fn direction(&self, now_s: u64) -> Direction {
        Direction { way: self.way, by: self.by.clone(), at: now_s }
    }

    /// How it stands to what is said.
    pub fn stand(&self, said: Option<&Direction>, now_s: u64) -> Stand {
        match said {
            // It was held up for long (a process that was stopped, a machine that slept): what it knew
            // may have been undone by a run that has ended.
            None if self.led_at.is_some_and(|at| at.abs_diff(now_s) > FRESH_S) => {
                Stand::Contested(held_up())
            }
            None => Stand::Claims,
            Some(said) if said.way == self.way => {
                let is_late = said.at.abs_diff(now_s) > AGAIN_S;
                if is_late { Stand::Claims } else { Stand::Holds }
            }
            // Whatever the other's clock says: one of the two has to end.
            Some(said) if self.has_begun() => Stand::Contested(obstacle(said, now_s)),
            Some(said) if self.turns_round || !said.is_fresh(now_s) => Stand::Claims,
            Some(said) => Stand::Contested(obstacle(said, now_s)),
        }
    }
}

fn held_up() -> Obstacle {
    Obstacle {
        what: format!(
            "this run was held up for more than {FRESH_S} s, and nothing says any more that it leads \
             the cluster: another one may have gone the other way meanwhile"
        ),
        remedy: "look at the cluster (`mizzen migrate plan`), and begin again".to_owned(),
    }
}

fn obstacle(said: &Direction, now_s: u64) -> Obstacle {
    Obstacle {
        what: format!(
            "`mizzen migrate {}` leads this cluster the other way: {}, {} s ago",
            said.way.verb(),
            said.by,
            said.at.abs_diff(now_s)
        ),
        remedy: format!(
            "wait until that has ended, or end it; where it was killed, run this again after {FRESH_S} \
             s, or say `--turn-round`, with which a run of the other way ends at its next step"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: u64 = 1_800_000_000;

    fn said(way: Way, by: &str, ago_s: u64) -> Direction {
        Direction { way, by: by.to_owned(), at: NOW_S - ago_s }
    }

    #[test]
    fn a_run_begins_where_none_goes_the_other_way() {
        let is = |stand: &Stand| match stand {
            Stand::Holds => "holds",
            Stand::Claims => "claims",
            Stand::Contested(_) => "contested",
        };
        for (found, begun, turns_round, expected) in [
            (None, false, false, "claims"),
            (None, true, false, "claims"),
            (Some(said(Way::There, "a", 0)), false, false, "holds"),
            (Some(said(Way::There, "another", 0)), true, false, "holds"),
            (Some(said(Way::There, "a", AGAIN_S + 1)), true, false, "claims"),
            (Some(said(Way::There, "another", FRESH_S + 1)), false, false, "claims"),
            (Some(said(Way::Back, "another", 0)), false, false, "contested"),
            (Some(said(Way::Back, "another", FRESH_S)), false, false, "contested"),
            (Some(said(Way::Back, "another", FRESH_S + 1)), false, false, "claims"),
            (Some(said(Way::Back, "another", 0)), false, true, "claims"),
            // It was turned round itself, by one whose clock may be any.
            (Some(said(Way::Back, "another", 0)), true, true, "contested"),
            (Some(said(Way::Back, "another", FRESH_S + 1)), true, false, "contested"),
        ] {
            let mut run = Run::new(Way::There, "a".to_owned(), turns_round);
            if begun {
                run.leads(NOW_S - 1);
            }
            let stand = run.stand(found.as_ref(), NOW_S);
            assert_eq!(is(&stand), expected, "{found:?} {begun} {turns_round}");
        }
        let mut held_up = Run::new(Way::There, "a".to_owned(), false);
        held_up.leads(NOW_S - FRESH_S - 1);
        assert_eq!(is(&held_up.stand(None, NOW_S)), "contested");
        held_up.leads(NOW_S - FRESH_S);
        assert_eq!(is(&held_up.stand(None, NOW_S)), "claims");
    }

    /// Each looks and says in turn, as two terminals would have it.
    #[test]
    fn of_two_runs_that_turn_each_other_round_one_ends() {
        let mut runs = [
            Run::new(Way::There, "a".to_owned(), false),
            Run::new(Way::Back, "b".to_owned(), true),
        ];
        let (mut found, mut contested) = (None, Vec::new());
        for turn in 0..10 {
            for run in &mut runs {
                if contested.contains(&run.way) {
                    continue;
                }
                match run.stand(found.as_ref(), NOW_S + turn) {
                    Stand::Contested(_) => contested.push(run.way),
                    Stand::Claims => found = Some(run.direction(NOW_S + turn)),
                    Stand::Holds => {}
                }
                run.leads(NOW_S + turn);
            }
        }
        assert_eq!(contested, [Way::There]);
        assert_eq!(found.map(|direction| direction.way), Some(Way::Back));
    }

    #[test]
    fn who_is_refused_is_told_by_whom_and_what_to_do() {
        let run = Run::new(Way::There, "a".to_owned(), false);
        let said = said(Way::Back, "process 7 on n", 9);
        let Stand::Contested(it) = run.stand(Some(&said), NOW_S) else { panic!() };
        assert!(it.what.contains("migrate rollback`") && it.what.contains("7 on n, 9 s"), "{it:?}");
        assert!(it.remedy.contains("--turn-round"), "{it:?}");
    }

    #[test]
    fn it_is_said_in_an_annotation_and_leaves_no_trace() {
        let before = ObjectMeta::default();
        let mut set = before.clone();
        let said = said(Way::Back, "b", 0);
        said.write(&mut set).unwrap();
        assert_eq!(Direction::of(&set), Some(said));
        Direction::erase(&mut set);
        assert_eq!(set, before);
        set.annotations.get_or_insert_default().insert(WAY.to_owned(), "odd".to_owned());
        assert_eq!(Direction::of(&set), None);
        set.annotations.get_or_insert_default().insert("other".to_owned(), String::new());
        Direction::erase(&mut set);
        assert_eq!(set.annotations.map(|notes| notes.len()), Some(1), "others' stay");
    }
}
