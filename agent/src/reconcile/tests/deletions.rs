//! From the slices to the queue of sockets that are to be destroyed.

use super::*;
use crate::resets;

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
    }
    assert!(bench.reconciler.retry.is_some(), "the plan failed");
    assert_eq!(resets.try_iter().count(), 0, "the tables may lead there yet");

    bench.reconciler.maps = Box::new(MemoryMaps::with_tables(tables));
    bench.reconciler.retry = Some(Instant::now());
    see(&mut bench, None);
    let told: Vec<String> =
        resets.try_iter().flatten().map(|reset| reset.endpoint.to_string()).collect();
    assert_eq!(told, ["10.244.0.6:8080"]);
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
    let (release, released) = mpsc::channel(1);
    let cancel = CancellationToken::new();
    let inputs = Inputs { snapshots, facts, queries, released };
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
    planned(4).await;
    release.send(vec![[10, 244, 0, 6].into()]).await.unwrap();
    assert_eq!(next(), 1, "its address was released");
    cancel.cancel();
    running.await.unwrap().unwrap();
}
