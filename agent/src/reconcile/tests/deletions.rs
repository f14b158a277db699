//! From the slices to the queue of sockets that are to be destroyed.

use std::time::Duration;

use mizzen_ebpf_abi::service::backend_flags;

use super::*;
use crate::{released, resets};

/// The cluster's slice with one more endpoint, `10.244.0.6`, on node `n`, in this state.
fn with_second(state: &mut ClusterState, conditions: Option<&str>) -> Arc<Snapshot> {
    let second = conditions.map_or_else(String::new, |conditions| {
        format!(", {{addresses: [10.244.0.6], nodeName: n, conditions: {{{conditions}}}}}")
    });
    let slice = format!(
        "{{metadata: {{name: web-1, namespace: default, labels: {{kubernetes.io/service-name:
        web}}}}, addressType: IPv4, ports: [{{name: '', port: 8080}}], endpoints: [{{addresses:
        [10.244.0.5]}}{second}]}}"
    );
    let slice = convert::endpoint_slice(&serde_yaml_ng::from_str(&slice).unwrap()).0.unwrap();
    state.apply(Change::Slices(Event::Replace(vec![slice])));
    Arc::new(state.snapshot().clone())
}

const TERMINATING: &str = "ready: false, serving: true, terminating: true";

#[test]
fn v8_a_deletion_whose_plan_fails_is_taken_along_by_the_next() {
    let (queue, resets) = resets::Queue::new(Arc::default());
    let mut bench = bench(MemoryMaps::default());
    bench.reconciler = bench.reconciler.resetting(queue);
    let facts = NodeFacts::default();
    let mut state = cluster();
    let mut see = |bench: &mut Bench, conditions| {
        let snapshot = with_second(&mut state, conditions);
        bench.reconciler.follow(&snapshot, Some(&facts));
        bench.reconciler.finish();
    };
    see(&mut bench, Some("ready: true"));
    see(&mut bench, Some(TERMINATING));
    see(&mut bench, None);
    let tables = bench.reconciler.maps.dump().unwrap();
    let mut broken = MemoryMaps::with_tables(tables.clone());
    broken.fail_after(Some(0));
    bench.reconciler.maps = Box::new(broken);
    let now = Instant::now();
    for seconds in 0..4 {
        bench.reconciler.settle(now + Duration::from_secs(seconds));
        bench.reconciler.finish();
    }
    assert!(bench.reconciler.trouble.has_failed(), "the plan failed");
    assert_eq!(resets.try_iter().count(), 0, "the tables may lead there yet");

    bench.reconciler.maps = Box::new(MemoryMaps::with_tables(tables));
    bench.reconciler.trouble.hasten(Instant::now());
    see(&mut bench, None);
    let told: Vec<String> =
        resets.try_iter().flatten().map(|reset| reset.endpoint.to_string()).collect();
    assert_eq!(told, ["10.244.0.6:8080"]);
}

/// What somebody else altered makes the tables unknown, in the middle of what waits for a barrier.
#[test]
fn v8_a_deletion_that_waits_for_a_barrier_outlives_tables_that_are_altered() {
    let (queue, resets) = resets::Queue::new(Arc::default());
    let mut bench = bench(MemoryMaps::default());
    bench.reconciler = bench.reconciler.resetting(queue);
    bench.reconciler.desired =
        Desired::new(Settings { node_name: "n".into(), ..Settings::default() });
    let facts = NodeFacts::default();
    let snapshot = with_second(&mut cluster(), Some("ready: true"));
    bench.reconciler.follow(&snapshot, Some(&facts));
    bench.reconciler.released(&[[10, 244, 0, 6].into()].into());
    assert_eq!(resets.try_iter().count(), 0, "programs may still lead there");
    let mut tables = bench.reconciler.maps.dump().unwrap();
    tables.frontends.clear();
    bench.reconciler.maps = Box::new(MemoryMaps::with_tables(tables));

    bench.reconciler.review(Instant::now() + REVIEW);
    assert!(bench.reconciler.known.is_none(), "somebody altered them");
    assert!(bench.reconciler.releases.forgotten, "somebody may read what was unlinked");
    bench.reconciler.follow(&snapshot, Some(&facts));
    assert!(!bench.reconciler.releases.forgotten, "who did was waited for");
    bench.reconciler.finish();
    assert_eq!(resets.try_iter().flatten().count(), 1);
    assert!(bench.reconciler.difference().unwrap().steps.is_empty());
}

#[test]
fn v8_a_deletion_does_not_wait_for_what_has_no_room() {
    let (queue, resets) = resets::Queue::new(Arc::default());
    let mut bench = bench(MemoryMaps::default());
    bench.reconciler = bench.reconciler.resetting(queue);
    bench.reconciler.max = Capacities { sets: 2, ..Capacities::MAX };
    let mut state = cluster();
    let service = "{metadata: {name: zzz, namespace: default}, spec: {clusterIPs: [10.96.0.8],
        ports: [{port: 80}]}}";
    let service = convert::service(&serde_yaml_ng::from_str(service).unwrap()).0.unwrap();
    state.apply(Change::Services(Event::Apply(service)));
    for conditions in [Some("ready: true"), Some(TERMINATING), None] {
        let snapshot = with_second(&mut state, conditions);
        bench.reconciler.follow(&snapshot, Some(&NodeFacts::default()));
    }
    let now = Instant::now();
    for seconds in 0..4 {
        bench.reconciler.settle(now + Duration::from_secs(seconds));
        bench.reconciler.finish();
    }
    assert!(bench.reconciler.trouble.retry().is_some(), "a set has no room");
    assert_eq!(resets.try_iter().flatten().count(), 1);
}

/// The address of a deleted endpoint is another's already. Wherever its plan is broken off, what is
/// repeated resets what was led to the deleted one, and nothing that was led to the other.
#[test]
fn v8_a_repeated_plan_resets_nobody_who_has_the_address_now() {
    let facts = NodeFacts::default();
    for writes in 0.. {
        let (queue, resets) = resets::Queue::new(Arc::default());
        let mut bench = bench(MemoryMaps::default());
        let settings = Settings { node_name: "n".into(), ..Settings::default() };
        bench.reconciler.desired = Desired::new(settings);
        bench.reconciler = bench.reconciler.resetting(queue);
        let snapshot = with_second(&mut cluster(), Some("ready: true"));
        bench.reconciler.follow(&snapshot, Some(&facts));
        let mut maps = MemoryMaps::with_tables(bench.reconciler.maps.dump().unwrap());
        let before = maps.tables().clone();
        let (id, dead) = before.backends4.iter().find(|(_, b)| b.addr == [10, 244, 0, 6]).unwrap();
        let set = dead.set;

        maps.fail_after(Some(writes));
        bench.reconciler.maps = Box::new(maps);
        bench.reconciler.released(&[[10, 244, 0, 6].into()].into());
        bench.reconciler.finish();
        let broken = bench.reconciler.trouble.has_failed();
        if broken {
            let tables = bench.reconciler.maps.dump().unwrap();
            bench.reconciler.maps = Box::new(MemoryMaps::with_tables(tables));
            bench.reconciler.trouble.hasten(Instant::now());
            bench.reconciler.follow(&snapshot, Some(&facts));
            bench.reconciler.finish();
        }
        assert!(bench.board.ready(), "after {writes} writes");
        let told: Vec<_> = resets.try_iter().flatten().collect();
        assert_eq!(told.len(), 1, "after {writes} writes");
        let reset = (told[0].set, told[0].generation, told[0].backend);
        assert_eq!(
            reset,
            (set, before.sets[&set].generation(), Some(*id)),
            "after {writes} writes"
        );
        let after = bench.reconciler.maps.dump().unwrap();
        let gone = backend_flags::GONE | backend_flags::FREED;
        assert_eq!((after.backends4[id].addr, after.backends4[id].flags), (dead.addr, gone));
        let heirs = after.backends4.values().filter(|b| b.addr == dead.addr && b.set == set);
        assert_eq!(heirs.count(), 1);
        assert!(after.sets[&set].generation() > before.sets[&set].generation());
        if !broken {
            assert!(writes > 10, "a plan of {writes} writes");
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn v8_the_loop_gives_up_what_left_and_what_was_released() {
    let (queue, resets) = resets::Queue::new(Arc::default());
    let Bench { mut reconciler, metrics, .. } = bench(MemoryMaps::default());
    reconciler.desired = Desired::new(Settings { node_name: "n".into(), ..Settings::default() });
    let reconciler = reconciler.resetting(queue);
    let mut state = cluster();
    let (publish, snapshots) = watch::channel(with_second(&mut state, Some("ready: true")));
    let (_facts, facts) = watch::channel(Some(Arc::new(NodeFacts::default())));
    let (_queries, queries) = mpsc::channel(1);
    let (release, released) = released::channel();
    let cancel = CancellationToken::new();
    let host_ports = Arc::new(HostPorts::none());
    let inputs = Inputs { snapshots, facts, queries, released, host_ports };
    let running = tokio::spawn(reconciler.run(inputs, cancel.clone()));
    // The loop looks at the newest snapshot only: it has to have made a plan of each.
    let planned = async |plans| {
        while metrics.plans.load(Relaxed) < plans {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let next = || {
        let batch = tokio::task::block_in_place(|| resets.recv_timeout(Duration::from_secs(5)));
        batch.unwrap().len()
    };
    planned(1).await;
    publish.send(with_second(&mut state, Some(TERMINATING))).unwrap();
    planned(2).await;
    publish.send(with_second(&mut state, None)).unwrap();
    assert_eq!(next(), 1, "it left");
    publish.send(with_second(&mut state, Some("ready: true"))).unwrap();
    planned(3).await;
    assert_eq!(release.announce(&[[10, 244, 0, 6].into()]), 0);
    assert_eq!(next(), 1, "its address was released");
    cancel.cancel();
    running.await.unwrap().unwrap();
}

/// What was released when the loop was told to end is reset. What left a moment ago isn't: nobody
/// watches any more whether it turns up in another slice.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn v8_the_end_gives_up_what_was_released_and_not_what_may_have_moved() {
    for (conditions, told) in [(Some("ready: true"), 1), (None, 0)] {
        let (queue, resets) = resets::Queue::new(Arc::default());
        let Bench { mut reconciler, .. } = bench(MemoryMaps::default());
        let settings = Settings { node_name: "n".into(), ..Settings::default() };
        reconciler.desired = Desired::new(settings);
        let mut reconciler = reconciler.resetting(queue);
        let (mut state, facts) = (cluster(), NodeFacts::default());
        for conditions in [Some("ready: true"), Some(TERMINATING), conditions] {
            reconciler.follow(&with_second(&mut state, conditions), Some(&facts));
        }
        // It left so long ago that the next look gives it up.
        for seconds in [2, 1] {
            reconciler.settle(Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap());
        }
        let (publish, snapshots) = watch::channel(with_second(&mut state, conditions));
        let (_facts, facts) = watch::channel(Some(Arc::new(facts)));
        let (_queries, queries) = mpsc::channel(1);
        let (release, released) = released::channel();
        let cancel = CancellationToken::new();
        if conditions.is_some() {
            assert_eq!(release.announce(&[[10, 244, 0, 6].into()]), 0);
        }
        drop(publish);
        cancel.cancel();
        let host_ports = Arc::new(HostPorts::none());
        let inputs = Inputs { snapshots, facts, queries, released, host_ports };
        reconciler.run(inputs, cancel).await.unwrap();
        assert_eq!(resets.try_iter().flatten().count(), told, "{conditions:?}");
    }
}
