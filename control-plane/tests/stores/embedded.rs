//! The embedded store.

use std::future::{Ready, ready};

use mizzen_control_plane::store::{Embedded, Options, Store};
use proptest::prelude::*;

use crate::contract;
use crate::model::{Model, agrees_at_every_revision, all, step, steps};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn in_a_directory() -> Ready<(tempfile::TempDir, Embedded)> {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path(), &Options::default()).unwrap();
    ready((directory, store))
}

contract::every_part!(in_a_directory);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn agrees_with_the_model_at_every_revision(steps in steps()) {
        let store = Embedded::in_memory(&Options::default());
        runtime().block_on(agrees_at_every_revision(&store, &steps));
    }

    #[test]
    fn comes_back_as_it_was(
        steps in steps(),
        snapshot_after in prop_oneof![Just(200_u64), Just(1 << 20)],
        history in prop_oneof![Just(4_usize), Just(1000)],
    ) {
        runtime().block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let options = Options { snapshot_after, history_events: history, ..Options::default() };
            let mut model = Model::new();
            let mut revision = 0;
            for part in steps.chunks(7) {
                let store = Embedded::open(directory.path(), &options).unwrap();
                assert_eq!(store.revision().await.unwrap(), revision);
                assert_eq!(all(&store, "", None).await.unwrap(), model);
                for one in part {
                    step(&store, &mut model, one).await;
                }
                revision = store.revision().await.unwrap();
            }
        });
    }
}
