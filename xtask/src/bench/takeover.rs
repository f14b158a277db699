//! `takeover-lost`: what clients notice when Mizzen takes the place of kube-proxy's rules. TCP and UDP
//! flows that began by the rules go on all the while, and new connections come; then the agent starts,
//! serves, and the rules are removed.

use std::{
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use super::{
    Figure,
    catalogue::{ECHO_PORT, SIZES},
    contender::{Rules, Seat},
    mizzen, sockets,
    triple::{At, Triple},
    world::World,
};
use crate::cluster::{Layout, process, up};

/// The figure's name.
pub const NAME: &str = "takeover-lost";
/// How many services there are: a size whose called service somebody answers behind.
const SIZE: u32 = SIZES[2];
/// Loads of each kind: a TCP flow, a UDP flow, new connections one after another. One ends with an
/// error as soon as anything of it is lost.
const LOADS: [(&str, usize); 3] = [("rr", 8), ("udp-connected", 8), ("connect", 4)];
/// How long they last: longer than it takes an agent to take over.
const LENGTH: Duration = Duration::from_secs(30);

/// Takes over once, in a cluster of its own.
pub fn measure(layout: &Layout) -> Result<Vec<Figure>> {
    let mut world = World::start(layout)?;
    world.grow(SIZE)?;
    let seat = world.seat(&Rules::Nft, SIZE)?;
    seat.await_answer()?;
    mizzen::register(&world, &seat.triple)?;
    let begun = Instant::now();
    let loads = start(&seat);
    let taken = until_translated(&seat.triple).and_then(|()| take_over(&seat.triple));
    let took = begun.elapsed();
    let lost = finish(loads);
    taken?;
    if took >= LENGTH {
        bail!("the agent took over in {took:?}, and the load lasted {LENGTH:?}");
    }
    process::end(&mizzen::running(&seat.triple)?)?;
    let loads: usize = LOADS.iter().map(|(_, count)| count).sum();
    let of = format!("mizzen after nftables rules, of {loads} loads");
    Ok(vec![Figure::once(NAME, f64::from(lost), "loads", of).at_most(0.0, 0.0)])
}

/// A load that runs, and what it was.
type Load = (&'static str, JoinHandle<Result<()>>);

fn start(seat: &Seat) -> Vec<Load> {
    let millis = u64::try_from(LENGTH.as_millis()).unwrap_or(u64::MAX);
    let each = LOADS.iter().flat_map(|(mode, count)| std::iter::repeat_n(*mode, *count));
    each.map(|mode| {
        let way = seat.by_first_service(ECHO_PORT);
        (mode, thread::spawn(move || sockets::load(&way, mode, millis).map(drop)))
    })
    .collect()
}

/// How many were cut off.
fn finish(loads: Vec<Load>) -> u32 {
    let mut lost = 0;
    for (mode, load) in loads {
        let why = match load.join() {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "it panicked".to_owned(),
        };
        crate::step::note(&format!("{mode}: {why}"));
        lost += 1;
    }
    lost
}

/// Waits until the kernel translates the flows of all loads by the rules.
fn until_translated(triple: &Triple) -> Result<()> {
    let flows: usize = LOADS.iter().filter(|(mode, _)| *mode != "connect").map(|it| it.1).sum();
    up::wait(&triple.layout, "flows by the rules", || {
        let counted = triple.capture(At::Node, &["conntrack", "--count"])?;
        let counted: usize = counted.trim().parse()?;
        Ok(if counted >= flows { Ok(()) } else { Err(format!("{counted} of {flows}")) })
    })
}

/// Has the agent serve, and then the rules removed.
fn take_over(triple: &Triple) -> Result<()> {
    mizzen::start(triple)?;
    mizzen::follow(triple, SIZE)?;
    let layout = &triple.layout;
    let mizzen = layout.binary("mizzen").display().to_string();
    let state_dir = layout.state_dir(&triple.host.name).display().to_string();
    let words =
        [&*mizzen, "--state-dir", &state_dir, "migrate", "apply", "--kube-proxy-is-stopped"];
    up::wait(layout, "the rules to be removed", || {
        // It refuses until the agent serves.
        Ok(triple.capture(At::Node, &words).map(drop).map_err(|error| format!("{error:#}")))
    })?;
    let left = triple.capture(At::Node, &["nft", "list", "tables"])?;
    ensure!(!left.contains("kube-proxy"), "{left}");
    Ok(())
}
