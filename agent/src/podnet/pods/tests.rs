//! What callers are told, and what is left, where a pod can't be removed at once. Each test has a
//! network namespace of its own.

use std::{
    fs::{self, OpenOptions},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use mizzen_cni::{offline::append_journal, wire::DEL_JOURNAL};
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::podnet::datapath::PodDatapathError;

const BOOT: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";
const LIMIT: Duration = Duration::from_secs(8);

/// Keeps its pods as long as this is true.
#[derive(Default)]
struct Holding(AtomicBool);

impl PodDatapath for Holding {
    fn attach(&self, _: &PodLink, _: Option<&File>) -> Result<(), PodDatapathError> {
        Ok(())
    }

    fn detach(&self, link: &PodLink) -> Result<(), PodDatapathError> {
        if !self.0.load(Relaxed) {
            return Ok(());
        }
        let source = Box::from("the test says no");
        Err(PodDatapathError { operation: "forget", ifname: link.ifname.clone(), source })
    }
}

/// Pods whose journal is in this folder.
fn pods(folder: &Path, datapath: Arc<dyn PodDatapath>) -> Pods {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace, which needs root");
    let path = folder.join("podnet.journal");
    let pods = Pods::open(&path, BOOT, Vec::new(), datapath).unwrap();
    pods.set_ranges(&["10.244.1.0/24".parse().unwrap()]).unwrap();
    pods
}

/// A pod that is connected by the journal, in the namespace of this process, which is alive.
fn live(pods: &Pods, container_id: &str) -> Attachment {
    // What is there already is made by nobody, whatever the test finds.
    let attachment = Attachment { container_id: container_id.into(), ifname: "lo".into() };
    let netns = File::open("/proc/self/ns/net").unwrap();
    let reservation = Reservation {
        network: NETWORK.into(),
        pod: Pod::default(),
        netns: NetnsId::of(&netns).unwrap(),
        netns_cookie: netns::cookie(&netns),
        mtu: 1500,
        requested: Requested::default(),
    };
    pods.ledger().reserve(&attachment, reservation, pods.now()).unwrap();
    pods.ledger().set_phase(&attachment, Phase::Live).unwrap();
    attachment
}

fn phase(pods: &Pods, attachment: &Attachment) -> Option<Phase> {
    pods.ledger().get(attachment).map(|entry| entry.phase)
}

#[test]
fn cni_39_gc_says_all_that_it_could_not_remove_and_del_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    let datapath = Arc::new(Holding::default());
    let pods = pods(folder.path(), datapath.clone());
    let attachments = ["c1", "c2"].map(|container_id| live(&pods, container_id));
    let stranger = PodLink {
        ifname: "mz0123456789abc".into(),
        ifindex: 4711,
        addresses: Vec::new(),
        pod_mac: [2, 0, 0, 0, 0, 1],
        host_mac: [2, 0, 0, 0, 0, 2],
        socket_translation: None,
        queued: false,
        sends: None,
    };
    let names = attachments.each_ref().map(Attachment::host_ifname);
    pods.strangers().insert(stranger.ifname.clone(), stranger.clone());
    datapath.0.store(true, Relaxed);
    let said = pods.gc(NETWORK, &[], None, LIMIT).unwrap_err().details;
    for ifname in names.iter().chain([&stranger.ifname]) {
        let expected = format!("forget for pod interface {ifname}: the test says no");
        assert!(said.contains(&expected), "{said}");
    }
    for attachment in &attachments {
        assert!(said.contains(&attachment.to_string()), "{said}");
        pods.del(attachment, LIMIT).unwrap();
        assert_eq!(phase(&pods, attachment), Some(Phase::Leaving));
    }
    datapath.0.store(false, Relaxed);
    pods.gc(NETWORK, &[], None, LIMIT).unwrap();
    pods.tear_down();
    assert!(pods.entries().is_empty() && pods.strangers().is_empty());
}

/// The next pass would make the link anew, of which the runtime was told that it is gone.
#[test]
fn cni_35_a_pod_that_was_deleted_while_the_journal_was_full_is_removed_later() {
    let folder = tempfile::tempdir().unwrap();
    let pods = pods(folder.path(), Arc::new(Holding::default()));
    let attachment = live(&pods, "c1");
    let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
    let file = pods.ledger().exchange_file(full);
    pods.del(&attachment, LIMIT).unwrap();
    assert_eq!(phase(&pods, &attachment), Some(Phase::Leaving));
    let (healed, refused) = pods.reconcile().unwrap();
    assert!(healed.is_empty(), "{healed:?}");
    assert!(refused.iter().any(|said| said.contains("journal")), "{refused:?}");
    pods.ledger().exchange_file(file);
    let (healed, refused) = pods.reconcile().unwrap();
    assert_eq!(healed.get("pod"), Some(&1));
    assert!(refused.is_empty() && pods.entries().is_empty(), "{refused:?}");
}

/// The record is all that says what is left of it.
#[test]
fn cni_17_an_add_does_not_take_the_place_of_what_can_not_be_removed() {
    let folder = tempfile::tempdir().unwrap();
    let datapath = Arc::new(Holding::default());
    let pods = pods(folder.path(), datapath.clone());
    let attachment = live(&pods, "c1");
    let before = pods.ledger().get(&attachment).cloned().unwrap();
    pods.set_waiting(None);
    datapath.0.store(true, Relaxed);
    let addition = Addition {
        network: NETWORK.into(),
        attachment: attachment.clone(),
        pod: Pod::default(),
        netns: File::open("/proc/self/ns/net").unwrap(),
        requested: Requested::default(),
    };
    let refused = pods.add(&addition, LIMIT).err().unwrap();
    assert!(refused.details.contains("the test says no"), "{refused:?}");
    let after = pods.ledger().get(&attachment).cloned().unwrap();
    assert_eq!(after, Entry { phase: Phase::Leaving, ..before });
}

#[test]
fn cni_35_a_noted_del_of_what_a_call_is_at_work_on_is_noted_again() {
    let folder = tempfile::tempdir().unwrap();
    let pods = pods(folder.path(), Arc::new(Holding::default()));
    let [busy, free] = ["c1", "c2"].map(|container_id| live(&pods, container_id));
    for attachment in [&busy, &free] {
        append_journal(folder.path(), attachment).unwrap();
    }
    let noted = folder.path().join(DEL_JOURNAL);
    let at_work = pods.claims.claim(&busy, LIMIT).unwrap();
    pods.drain_noted(None).unwrap();
    let of_busy = "{\"containerID\":\"c1\",\"ifname\":\"lo\"}\n";
    assert_eq!(fs::read_to_string(&noted).unwrap(), of_busy);
    assert_eq!(phase(&pods, &free), Some(Phase::Leaving));
    // An ADD of another one goes on; one of this one would come before the DEL.
    pods.drain_noted(Some((&free, Instant::now() + LIMIT))).unwrap();
    let soon = Instant::now() + Duration::from_millis(50);
    let refused = pods.drain_noted(Some((&busy, soon))).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
    assert_eq!(phase(&pods, &busy), Some(Phase::Live));
    assert!(pods.drain_noted(None).unwrap(), "it is to be asked again");
    drop(at_work);
    pods.drain_noted(Some((&busy, Instant::now() + LIMIT))).unwrap();
    assert_eq!(phase(&pods, &busy), Some(Phase::Leaving));
    assert!(!noted.exists());
    assert!(!pods.drain_noted(None).unwrap());
}

/// What an earlier call left unfinished does not hide what was noted since.
#[test]
fn cni_35_an_add_comes_after_all_that_is_noted_of_it_in_either_file() {
    let folder = tempfile::tempdir().unwrap();
    let pods = pods(folder.path(), Arc::new(Holding::default()));
    let [before, own] = ["c1", "c2"].map(|container_id| live(&pods, container_id));
    let noted = folder.path().join(DEL_JOURNAL);
    append_journal(folder.path(), &before).unwrap();
    fs::rename(&noted, noted.with_extension("draining")).unwrap();
    append_journal(folder.path(), &own).unwrap();
    pods.drain_noted(Some((&own, Instant::now() + LIMIT))).unwrap();
    for attachment in [&before, &own] {
        assert_eq!(phase(&pods, attachment), Some(Phase::Leaving));
    }
    assert!(!noted.exists() && !noted.with_extension("draining").exists());
}

/// Nobody else is held up by who waits for an attachment.
#[test]
fn cni_34_an_add_that_waits_for_its_own_attachment_lets_others_drain() {
    let folder = tempfile::tempdir().unwrap();
    let pods = pods(folder.path(), Arc::new(Holding::default()));
    let [busy, free] = ["c1", "c2"].map(|container_id| live(&pods, container_id));
    append_journal(folder.path(), &busy).unwrap();
    let at_work = pods.claims.claim(&busy, LIMIT).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| pods.drain_noted(Some((&busy, Instant::now() + LIMIT))));
        pods.drain_noted(Some((&free, Instant::now() + LIMIT))).unwrap();
        assert!(!waits.is_finished());
        drop(at_work);
        assert!(!waits.join().unwrap().unwrap());
    });
    assert_eq!(phase(&pods, &busy), Some(Phase::Leaving));
}

#[test]
fn cni_34_noted_dels_that_an_add_has_no_time_for_are_left_to_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let pods = pods(folder.path(), Arc::new(Holding::default()));
    let [noted, other] = ["c1", "c2"].map(|container_id| live(&pods, container_id));
    append_journal(folder.path(), &noted).unwrap();
    let late = || Some((&other, Instant::now()));
    for _ in 0..2 {
        let refused = pods.drain_noted(late()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        assert_eq!(phase(&pods, &noted), Some(Phase::Live));
    }
    // While another call does them, too.
    let draining = pods.draining.lock().unwrap();
    assert_eq!(pods.drain_noted(late()).unwrap_err().kind(), io::ErrorKind::TimedOut);
    drop(draining);
    pods.drain_noted(Some((&other, Instant::now() + LIMIT))).unwrap();
    assert_eq!(phase(&pods, &noted), Some(Phase::Leaving));
}
