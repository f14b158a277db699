//! Sets are flipped and what they left is reused at once, while sockets dial.

use std::{net::SocketAddr, time::Duration};

use mizzen_agent::apply::maps::{Growing, Maps as _};
use mizzen_ebpf_abi::{
    addr::protocol::{TCP, UDP},
    counters::Counter,
    service::{RANGE_HEADER_WORDS, SetWord},
};
use mizzen_tests::tables::Windows;

use super::{Bench, FAMILIES, Family};

/// Flips of each family's two sets together: 10⁴ in all.
const FLIPS: usize = 3_334;
/// Places that a set's range moves through between two barriers.
const PLACES: usize = 16;

/// Each flip moves a service to another range with other backends. Behind the barrier all ranges
/// that were left are given to a set that nobody dials, and their backends to none: whoever still
/// read them would be counted.
#[test]
fn r07_nobody_reads_what_flips_left_behind() {
    for family in FAMILIES {
        let mut bench = Bench::new(family);
        let vip = SocketAddr::new(family.vip(10), 80);
        let sets = [TCP, UDP].map(|protocol| {
            let set = bench.tables.set();
            bench.tables.frontend(vip, protocol, set, 0);
            set
        });
        let mut moving = sets.map(|set| Moving::new(&mut bench, set));
        for set in &mut moving {
            set.turn(&mut bench);
        }
        let mut actors = [bench.node.actor(), bench.node.actor()];
        actors[0].load(family.tcp(), family.dialled(vip));
        actors[1].load(family.udp(), family.dialled(vip));
        for _ in 0..FLIPS / PLACES / sets.len() {
            for set in &mut moving {
                set.turn(&mut bench);
            }
        }
        for actor in &mut actors {
            let load = actor.stop();
            assert_eq!(load.failed, 0, "{family:?}: {}", load.first_failure);
            assert!(load.done > 100, "{load:?}");
        }
        for counter in [Counter::ForeignRange, Counter::ForeignBackend] {
            assert_eq!(bench.counted(counter), 0, "{family:?}: {}", counter.name());
        }
    }
}

/// Tables are replaced by larger ones under those who read them. Between two of them a set is
/// flipped, so that a reader that goes on with an older table would be led astray.
#[test]
fn r07_tables_grow_under_those_who_read_them() {
    for family in FAMILIES {
        let mut bench = Bench::new(family);
        let vip = bench.service(10, &[bench.a, bench.b]);
        let mut actors = [bench.node.actor(), bench.node.actor()];
        actors[0].load(family.tcp(), vip);
        actors[1].load(family.udp(), vip);
        for step in 1..=12 {
            let before = bench.tables.maps.dump().unwrap();
            for table in Growing::ALL {
                let capacity = bench.tables.maps.capacities().of(table);
                bench.tables.maps.grow(&[(table, capacity + 1_000 * step)]).unwrap();
            }
            assert_eq!(bench.tables.maps.dump().unwrap(), before);
            let (set, word) = before.sets.first_key_value().unwrap();
            let ids = [word.offset() + RANGE_HEADER_WORDS, word.offset() + RANGE_HEADER_WORDS + 1]
                .map(|index| before.slots[index as usize]);
            let offset = bench.tables.range(*set, &ids, Windows::all(2));
            bench.tables.flip(*set, offset);
        }
        for actor in &mut actors {
            let load = actor.stop();
            assert_eq!(load.failed, 0, "{family:?}: {}", load.first_failure);
            assert!(load.done > 100, "{load:?}");
        }
        for counter in [Counter::ForeignRange, Counter::ForeignBackend] {
            assert_eq!(bench.counted(counter), 0, "{family:?}: {}", counter.name());
        }
    }
}

/// A set whose range moves around.
struct Moving {
    set: u32,
    places: [Place; PLACES],
    live: usize,
    generation: u32,
}

/// A place for a range of two backends, and their ids.
struct Place {
    offset: u32,
    backends: [u32; 2],
}

impl Moving {
    fn new(bench: &mut Bench, set: u32) -> Self {
        let addrs = [bench.a, bench.b];
        let places = [(); PLACES].map(|()| {
            let backends = addrs.map(|addr| bench.tables.backend(set, addr));
            Place { offset: bench.tables.range(set, &backends, Windows::all(2)), backends }
        });
        Self { set, places, live: 0, generation: 0 }
    }

    /// Through all places, the barrier, and the poisoning of what was left.
    fn turn(&mut self, bench: &mut Bench) {
        const NOBODY: u32 = 1000;
        let (addrs, tables) = ([bench.a, bench.b], &mut bench.tables);
        for place in self.others() {
            for (id, addr) in place.backends.into_iter().zip(addrs) {
                tables.write_backend(id, self.set, addr);
            }
            tables.write_range(place.offset, self.set, &place.backends, Windows::all(2));
        }
        for _ in 0..PLACES {
            self.live = (self.live + 1) % PLACES;
            self.generation += 1;
            let word = SetWord::new(self.places[self.live].offset, self.generation);
            tables.maps.flip(&[(self.set, word)]).unwrap();
        }
        tables.maps.barrier().unwrap();
        for place in self.others() {
            tables.write_range(place.offset, NOBODY, &[0, 0], Windows::default());
            for (id, addr) in place.backends.into_iter().zip(addrs) {
                tables.free_backend(id, addr);
            }
        }
    }

    fn others(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().enumerate().filter(|(i, _)| *i != self.live).map(|(_, place)| place)
    }
}

/// A program that takes long, as it searches hundreds of thousands of slots for the backend that
/// a socket remembers, still finds the backend that it then chooses: the barrier waited for it.
#[test]
fn d03_the_barrier_waits_for_programs_that_run() {
    const MANY: usize = 1_000_000;
    let mut bench = Bench::new(Family::V4);
    let vip = SocketAddr::new(bench.family.vip(10), 80);
    let set = bench.tables.set();
    let [a, b] = [bench.a, bench.b].map(|addr| bench.tables.backend(set, addr));
    let small = bench.tables.range(set, &[a], Windows::all(1));
    let large = bench.tables.range(set, &vec![b; MANY], Windows::all(MANY));
    assert!(large > small + RANGE_HEADER_WORDS);
    bench.tables.frontend(vip, UDP, set, 0);
    let socket = bench.actor.open(bench.family.udp());
    for round in 0..20 {
        bench.tables.write_backend(b, set, bench.b);
        bench.tables.flip(set, small);
        bench.actor.send_to(socket, vip, "?");
        assert_eq!(bench.actor.receive_from(socket), (vip, "a".to_owned()));
        bench.tables.flip(set, large);
        bench.actor.begin_send_to(socket, vip, "?");
        // Not a wait for anything: another moment of the program's run in each round.
        std::thread::sleep(Duration::from_micros(200 * round));
        bench.tables.flip(set, small);
        bench.tables.maps.barrier().unwrap();
        bench.tables.free_backend(b, bench.b);
        bench.actor.sent();
        assert_eq!(bench.actor.receive_from(socket).0, vip);
        assert_eq!(bench.counted(Counter::ForeignBackend), 0, "in round {round}");
    }
}
