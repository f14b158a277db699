//! What is told, and when.

use super::*;

fn waits() -> State {
    State::Waiting("no API server; do x".into())
}

fn degraded() -> State {
    State::Degraded("half of it; do y".into())
}

/// A sequence of looks.
struct Looks {
    start: Instant,
    watched: Watched,
}

impl Looks {
    fn new() -> Self {
        let start = Instant::now();
        Self { start, watched: Watched::new(start) }
    }

    /// What is told so many seconds after the beginning.
    fn at(&mut self, second: u64, parts: &[(Part, State)]) -> Looked {
        let now = self.start + Duration::from_secs(second);
        let looked = notices(&parts.iter().cloned().collect(), self.watched.clone(), now);
        self.watched = looked.watched.clone();
        looked
    }

    fn told(&mut self, second: u64, parts: &[(Part, State)]) -> Vec<(Part, &'static str)> {
        let notices = self.at(second, parts).notices;
        notices.iter().map(|notice| (notice.part, notice.reason.word())).collect()
    }
}

#[test]
fn what_passes_by_itself_is_not_told() {
    let mut looks = Looks::new();
    assert_eq!(looks.told(0, &[("dns", waits())]), []);
    assert_eq!(looks.told(29, &[("dns", waits())]), []);
    assert_eq!(looks.told(29, &[("dns", State::Ready)]), [], "nor is its end");
    assert_eq!(looks.told(59, &[("dns", waits())]), [], "it begins anew");
}

#[test]
fn what_stays_is_told_with_what_to_do_and_so_is_its_end() {
    let mut looks = Looks::new();
    let parts = [("dns", waits()), ("cni", State::Ready)];
    assert_eq!(looks.at(0, &parts).again, Some(GRACE));
    let looked = looks.at(30, &parts);
    let [notice] = &looked.notices[..] else { panic!("{looked:?}") };
    assert_eq!((notice.part, notice.reason.kind()), ("dns", "Warning"));
    assert_eq!(notice.note, "dns: no API server; do x");
    assert_eq!(looked.again, Some(AGAIN));
    let looked = looks.at(31, &[("dns", State::Ready), ("cni", State::Ready)]);
    let [notice] = &looked.notices[..] else { panic!("{looked:?}") };
    assert_eq!((notice.reason, notice.reason.kind()), (Reason::Ready, "Normal"));
    assert_eq!(looked.again, None, "nothing is due");
}

#[test]
fn the_same_is_told_once_in_ten_minutes() {
    let mut looks = Looks::new();
    let parts = [("dns", waits())];
    looks.at(0, &parts);
    assert_eq!(looks.told(30, &parts), [("dns", "PartWaits")]);
    for second in [31, 300, 629] {
        assert_eq!(looks.told(second, &parts), [], "{second}");
    }
    // Another reason is another matter.
    assert_eq!(looks.told(400, &[("dns", degraded())]), [("dns", "PartDegraded")]);
    assert_eq!(looks.told(630, &parts), [("dns", "PartWaits")], "and again");
    // It comes and goes.
    assert_eq!(looks.told(640, &[("dns", State::Ready)]), [("dns", "PartReady")]);
    for turn in 0..5 {
        assert_eq!(looks.told(650 + turn * 60, &parts), []);
        assert_eq!(looks.told(690 + turn * 60, &parts), []);
        assert_eq!(looks.told(691 + turn * 60, &[("dns", State::Ready)]), []);
    }
}

#[test]
fn many_at_once_are_told_as_there_is_room() {
    let names: Vec<Part> = (0..30).map(|nth| &*format!("part-{nth:02}").leak()).collect();
    let parts: Vec<_> = names.iter().map(|name| (*name, degraded())).collect();
    let mut looks = Looks::new();
    looks.at(0, &parts);
    let looked = looks.at(30, &parts);
    assert_eq!(looked.notices.len(), BURST as usize);
    assert_eq!(looked.again, Some(REFILL));
    assert_eq!(looks.told(59, &parts), []);
    assert_eq!(looks.told(60, &parts), [("part-20", "PartDegraded")]);
    assert_eq!(looks.told(150, &parts).len(), 3);
    // A long rest gives no more than the burst.
    assert_eq!(looks.told(100_000, &parts).len(), BURST as usize);
}

#[test]
fn the_condition_names_what_has_not_been_ready_for_a_while() {
    let mut looks = Looks::new();
    let ready = [("health-check-node-ports", State::Ready), ("dns", State::Ready)];
    assert_eq!(looks.at(0, &[]).condition, None, "nothing is known");
    let all = looks.at(1, &ready).condition.unwrap();
    assert!(all.ready && all.reason == "AllPartsReady", "{all:?}");
    let parts = [("health-check-node-ports", degraded()), ("dns", State::Ready)];
    assert_eq!(looks.at(2, &parts).condition, None, "as before");
    let one = looks.at(32, &parts).condition.unwrap();
    assert_eq!((one.ready, &*one.reason), (false, "HealthCheckNodePorts"));
    assert_eq!(one.message, "health-check-node-ports: half of it; do y");
    // One that does not serve goes before one that serves in part.
    let parts = [("cni", degraded()), ("dns", waits())];
    looks.at(33, &parts);
    let both = looks.at(63, &parts).condition.unwrap();
    assert_eq!(both.reason, "Dns");
    assert_eq!(both.message, "cni: half of it; do y; dns: no API server; do x");
    assert!(looks.at(64, &ready).condition.unwrap().ready);
}

#[test]
fn notes_have_room_in_an_event() {
    let long = State::Waiting("ä".repeat(2000));
    let mut looks = Looks::new();
    looks.at(0, &[("dns", long.clone())]);
    let looked = looks.at(30, &[("dns", long)]);
    let note = &looked.notices[0].note;
    assert!(note.len() <= NOTE_MAX && note.ends_with('…'), "{}", note.len());
    assert!(looked.condition.unwrap().message.len() <= NOTE_MAX);
}
