//! Rolling updates in a cluster of numbers: whatever the order in which the sets act, report and
//! their pods become available, the limits of the deployment hold and the rollout ends.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::controllers::write::Object;

/// A replica set and its pods, as a fake ReplicaSet controller and kubelet see them.
#[derive(Debug, Clone)]
struct Pods {
    set: ReplicaSet,
    available: i32,
    starting: i32,
}

#[derive(Debug, Clone)]
struct Cluster {
    deployment: Deployment,
    sets: Vec<Pods>,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// The deployment controller looks.
    Look,
    /// A set creates and deletes pods as its spec says.
    Act(usize),
    /// A set reports its status.
    Report(usize),
    /// A pod of a set becomes available.
    Start(usize),
}

impl Cluster {
    fn new(replicas: i32, surge: i32, unavailable: i32) -> Self {
        let deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "d"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {
                    "maxSurge": surge, "maxUnavailable": unavailable}},
                "template": {"metadata": {"labels": {"app": "web"}},
                             "spec": {"containers": [{"name": "c", "image": "v1"}]}},
            },
        }));
        Self { deployment: deployment.unwrap(), sets: Vec::new() }
    }

    fn look(&mut self) -> usize {
        let sets: Vec<_> = self.sets.iter().map(|pods| Arc::new(pods.set.clone())).collect();
        let seen = Seen {
            deployment: &self.deployment,
            sets: &sets,
            pods: &[],
            failure: None,
            now: Timestamp::UNIX_EPOCH,
        };
        let outcome = reconcile(&seen);
        let count = outcome.writes.len();
        outcome.writes.into_iter().for_each(|write| self.perform(write));
        count
    }

    fn perform(&mut self, write: Write) {
        match write {
            Write::Create(Object::ReplicaSet(mut set)) => {
                set.metadata.uid = Some(format!("rs-{}", self.sets.len()));
                self.sets.push(Pods { set: *set, available: 0, starting: 0 });
            }
            Write::Replace(Object::ReplicaSet(set)) => {
                let uid = set.metadata.uid.clone();
                let same = |pods: &&mut Pods| pods.set.metadata.uid == uid;
                self.sets.iter_mut().find(same).unwrap().set = *set;
            }
            Write::ReplaceSubresource("status", Object::Deployment(it)) => {
                self.deployment.status = it.status;
            }
            Write::MergePatch { patch, .. } => {
                let number = patch["metadata"]["annotations"][revision::REVISION].as_str().unwrap();
                let annotations = self.deployment.annotations_mut();
                annotations.insert(revision::REVISION.to_owned(), number.to_owned());
            }
            Write::Delete(deletion) => {
                self.sets.retain(|pods| pods.set.metadata.uid.as_ref() != Some(&deletion.uid));
            }
            Write::Tell(_) => {}
            other => panic!("{other:?}"),
        }
    }

    fn step(&mut self, step: Step) {
        let count = self.sets.len().max(1);
        match step {
            Step::Look => drop(self.look()),
            Step::Act(index) => self.sets.get_mut(index % count).into_iter().for_each(Pods::act),
            Step::Report(index) => {
                self.sets.get_mut(index % count).into_iter().for_each(Pods::report);
            }
            Step::Start(index) => {
                self.sets.get_mut(index % count).into_iter().for_each(Pods::start);
            }
        }
    }

    /// Everybody acts until nothing changes. Returns whether that came to pass.
    fn settle(&mut self) -> bool {
        for _ in 0..1000 {
            let writes = self.look();
            let before = format!("{:?}", self.sets);
            for pods in &mut self.sets {
                pods.act();
                pods.start();
                pods.report();
            }
            if writes == 0 && before == format!("{:?}", self.sets) {
                return true;
            }
        }
        false
    }

    fn asked_for(&self) -> i32 {
        self.sets.iter().map(Pods::wanted).sum()
    }

    fn available(&self) -> i32 {
        self.sets.iter().map(|pods| pods.available).sum()
    }
}

impl Pods {
    fn wanted(&self) -> i32 {
        self.set.spec.as_ref().unwrap().replicas.unwrap()
    }

    fn act(&mut self) {
        let surplus = self.available + self.starting - self.wanted();
        if surplus < 0 {
            self.starting -= surplus;
        } else {
            let unavailable = surplus.min(self.starting);
            self.starting -= unavailable;
            self.available -= surplus - unavailable;
        }
    }

    fn start(&mut self) {
        if self.starting > 0 {
            self.starting -= 1;
            self.available += 1;
        }
    }

    fn report(&mut self) {
        self.set.status = Some(k8s_openapi::api::apps::v1::ReplicaSetStatus {
            replicas: self.available + self.starting,
            ready_replicas: Some(self.available),
            available_replicas: Some(self.available),
            observed_generation: self.set.metadata.generation,
            ..Default::default()
        });
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Look),
        2 => (0..3_usize).prop_map(Step::Act),
        2 => (0..3_usize).prop_map(Step::Report),
        3 => (0..3_usize).prop_map(Step::Start),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn inv_66_a_rollout_never_leaves_its_limits_and_ends(
        replicas in 1..12_i32,
        surge in 0..5_i32,
        unavailable in 0..5_i32,
        steps in steps(),
    ) {
        let mut cluster = Cluster::new(replicas, surge, unavailable);
        prop_assert!(cluster.settle());
        prop_assert_eq!(cluster.available(), replicas);
        let template = &mut cluster.deployment.spec.as_mut().unwrap().template;
        template.spec.as_mut().unwrap().containers[0].image = Some("v2".into());
        let fewest = replicas - if surge == 0 { unavailable.max(1) } else { unavailable };
        for step in steps {
            cluster.step(step);
            prop_assert!(cluster.asked_for() <= replicas + surge, "{:?}", cluster.sets);
            prop_assert!(cluster.available() >= fewest, "{:?}", cluster.sets);
        }
        prop_assert!(cluster.settle());
        let sizes: Vec<_> = cluster.sets.iter().map(|pods| pods.available).collect();
        prop_assert_eq!(sizes, vec![0, replicas]);
        let status = cluster.deployment.status.as_ref().unwrap();
        prop_assert_eq!(status.updated_replicas, Some(replicas));
        prop_assert_eq!(status.available_replicas, Some(replicas));
        let number = &cluster.deployment.annotations()[revision::REVISION];
        prop_assert_eq!(number.as_str(), "2");
    }

    #[test]
    fn inv_74_scaling_during_a_rollout_ends_at_the_new_size(
        from in 1..12_i32,
        to in 0..12_i32,
        steps in steps(),
    ) {
        let mut cluster = Cluster::new(from, 2, 1);
        prop_assert!(cluster.settle());
        let spec = cluster.deployment.spec.as_mut().unwrap();
        spec.template.spec.as_mut().unwrap().containers[0].image = Some("v2".into());
        let half = steps.len() / 2;
        steps[..half].iter().for_each(|step| cluster.step(*step));
        cluster.deployment.spec.as_mut().unwrap().replicas = Some(to);
        steps[half..].iter().for_each(|step| cluster.step(*step));
        prop_assert!(cluster.settle());
        let sizes: Vec<_> = cluster.sets.iter().map(|pods| pods.available).collect();
        prop_assert_eq!(sizes.iter().sum::<i32>(), to);
        prop_assert_eq!(sizes[0], 0, "{:?}", sizes);
    }
}
