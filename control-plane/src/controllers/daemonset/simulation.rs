//! Rolling updates in a cluster of nodes whose pods start and end in any order: the limits of the
//! set hold, and the update ends.

use proptest::prelude::*;
use serde_json::json;

use super::tests::{pod as make_pod, revision, set as make_set};
use super::*;

/// Nodes with the pods that they have: name, whether of the new template, ready, leaving.
#[derive(Debug, Clone, PartialEq)]
struct Sim {
    pods: Vec<Fake>,
    nodes: usize,
    made: usize,
}

#[derive(Debug, Clone, PartialEq)]
struct Fake {
    name: String,
    node: usize,
    hash: String,
    ready: bool,
    leaving: bool,
}

impl Sim {
    fn look(&mut self, set: &DaemonSet) -> usize {
        let nodes: Vec<Arc<Node>> = (0..self.nodes)
            .map(|index| {
                let node = json!({"metadata": {"name": format!("n{index}")}});
                Arc::new(serde_json::from_value(node).unwrap())
            })
            .collect();
        let pods: Vec<Arc<Pod>> = self
            .pods
            .iter()
            .map(|pod| {
                let mut change = json!({});
                if !pod.ready {
                    change["status"] = json!({"conditions": null});
                }
                if pod.leaving {
                    change["metadata"] = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
                }
                make_pod(&pod.name, &format!("n{}", pod.node), &pod.hash, &change)
            })
            .collect();
        let waits = HashMap::new();
        let plan = reconcile(&Seen {
            set,
            revisions: &[revision(set)],
            pods: &pods,
            nodes: &nodes,
            waits: &waits,
            failure: None,
            now: "2026-01-01T01:00:00Z".parse().unwrap(),
        });
        let mut moved = 0;
        for write in plan.outcome.writes {
            match write {
                Write::Together(deletions) => {
                    for deletion in deletions {
                        let Write::Delete(deletion) = deletion else { continue };
                        let pod =
                            self.pods.iter_mut().find(|pod| pod.name == deletion.target.key.name);
                        pod.unwrap().leaving = true;
                        moved += 1;
                    }
                }
                Write::SlowStart(made, _) => {
                    for object in made {
                        let Object::Pod(pod) = object else { panic!("{object:?}") };
                        let node = pod::node_of(&pod).unwrap()[1..].parse().unwrap();
                        self.made += 1;
                        self.pods.push(Fake {
                            name: format!("z{}", self.made),
                            node,
                            hash: pod.labels()[history::HASH_LABEL].clone(),
                            ready: false,
                            leaving: false,
                        });
                        moved += 1;
                    }
                }
                _ => {}
            }
        }
        moved
    }

    fn available(&self) -> usize {
        let serves = |node: &usize| {
            self.pods.iter().any(|pod| pod.node == *node && pod.ready && !pod.leaving)
        };
        (0..self.nodes).filter(serves).count()
    }

    fn doubled(&self) -> usize {
        let on = |node: usize| self.pods.iter().filter(move |pod| pod.node == node && !pod.leaving);
        (0..self.nodes).filter(|node| on(*node).count() > 1).count()
    }

    /// A pod starts, or one that goes is gone.
    fn happen(&mut self, index: usize) {
        if self.pods.is_empty() {
            return;
        }
        let index = index % self.pods.len();
        if self.pods[index].leaving {
            self.pods.remove(index);
        } else {
            self.pods[index].ready = true;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn an_update_never_leaves_its_limits_and_ends(
        nodes in 1..8_usize,
        limit in 1..4_usize,
        surges in any::<bool>(),
        order in proptest::collection::vec(any::<usize>(), 0..120),
    ) {
        let (unavailable, surge) = if surges { (0, limit) } else { (limit, 0) };
        let set = make_set(&json!({"spec": {"updateStrategy": {"rollingUpdate": {
            "maxUnavailable": unavailable, "maxSurge": surge}}}}));
        let pods = (0..nodes).map(|node| Fake {
            name: format!("a{node}"), node, hash: "old".into(), ready: true, leaving: false,
        });
        let mut sim = Sim { pods: pods.collect(), nodes, made: 0 };
        let check = |sim: &Sim| {
            prop_assert!(sim.available() + unavailable >= nodes, "{sim:?}");
            prop_assert!(sim.doubled() <= surge, "{sim:?}");
            Ok(())
        };
        for index in order {
            sim.look(&set);
            check(&sim)?;
            sim.happen(index);
            check(&sim)?;
        }
        let mut rounds = 0;
        loop {
            let moved = sim.look(&set);
            check(&sim)?;
            let before = sim.clone();
            for index in (0..sim.pods.len()).rev() {
                sim.happen(index);
            }
            if moved == 0 && before == sim {
                break;
            }
            rounds += 1;
            prop_assert!(rounds < 100, "{sim:?}");
        }
        prop_assert_eq!(sim.pods.len(), nodes);
        prop_assert!(sim.pods.iter().all(|pod| pod.hash != "old" && pod.ready));
    }
}
