//! Agents that get no memory or hardly any CPU while everything is in use: nobody notices (reference
//! R12).

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mizzen_tests::soak::{Dice, share};
use xtask::cluster::{
    cgroup,
    layout::Host,
    process::{self, Started},
    up,
};

use super::{Check, World, restart::wait_ready, soak::under_churn};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] =
    &[("soak_r12_agents_starved_of_memory_or_cpu_lose_nothing", starved_under_churn)];

const MIB: u64 = 1 << 20;
/// An agent that lives through its want is left in it for so long.
const WANT: Duration = Duration::from_millis(1_500);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(20);

fn starved_under_churn(world: &World) -> Result<()> {
    let mut killed = 0;
    under_churn(world, |seed| {
        let mut dice = Dice::seeded(seed);
        let hosts = world.layout.node_hosts();
        for _ in 0..share(100) {
            killed += starve(world, &hosts[dice.below(hosts.len())], &mut dice)?;
        }
        Ok(())
    })?;
    println!("    {killed} agents were killed for want of memory");
    ensure!(killed > 0, "every agent got by with the memory that it was allowed");
    Ok(())
}

/// Starts a node's agent anew, with a limit of memory that most can't live within and a twentieth of
/// a CPU; at the end it has an agent that may have all. How many were killed.
fn starve(world: &World, host: &Host, dice: &mut Dice) -> Result<u64> {
    let name = up::agent(&host.name);
    if let Some(agent) = process::running(&world.layout, &name) {
        process::kill_hard(&agent);
    }
    // Programs, lists, tables: where it ends depends on how much it may have.
    let cells = Cells::make(&world.layout.prefix(), 4 * MIB + dice.roll() % (36 * MIB))?;
    let agent = up::start_agent(&world.layout, host)?;
    cells.confine(&agent)?;
    let begun = Instant::now();
    while begun.elapsed() < WANT && process::running(&world.layout, &name).is_some() {
        thread::sleep(LOOK);
    }
    cells.release(world, &agent, host)?;
    let killed = cells.killed()?;
    if killed > 0 {
        // With hardly any CPU it takes its time to die, and is no agent that may stay.
        process::kill_hard(&agent);
    }
    up::start_agent(&world.layout, host)?;
    if dice.roll() & 1 == 0 {
        wait_ready(world, &host.name)?;
    }
    Ok(killed)
}

/// Where a process gets little: one cgroup, or one of each controller where these are on their own
/// (cgroup v1).
struct Cells {
    dirs: Vec<PathBuf>,
    /// Tells how many processes the kernel killed for want of it.
    events: PathBuf,
}

impl Cells {
    /// With so many octets of memory.
    fn make(name: &str, octets: u64) -> Result<Self> {
        let below = |parent: &Path| {
            let dir = parent.join(format!("{name}-starved"));
            fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
            anyhow::Ok(dir)
        };
        let apart = Path::new("/sys/fs/cgroup/memory");
        if apart.is_dir() {
            let (memory, cpu) = (below(apart)?, below(&apart.with_file_name("cpu"))?);
            write(&cpu.join("cpu.cfs_period_us"), "20000")?;
            write(&cpu.join("cpu.cfs_quota_us"), "1000")?;
            write(&memory.join("memory.limit_in_bytes"), &octets.to_string())?;
            let events = memory.join("memory.oom_control");
            return Ok(Self { dirs: vec![memory, cpu], events });
        }
        let root = cgroup::mount_point()?;
        write(&root.join("cgroup.subtree_control"), "+memory +cpu")?;
        let dir = below(&root)?;
        write(&dir.join("cpu.max"), "1000 20000")?;
        write(&dir.join("memory.max"), &octets.to_string())?;
        let events = dir.join("memory.events");
        Ok(Self { dirs: vec![dir], events })
    }

    fn confine(&self, agent: &Started) -> Result<()> {
        self.dirs.iter().try_for_each(|dir| enter(dir, agent))
    }

    /// Puts an agent back to where it was.
    fn release(&self, world: &World, agent: &Started, host: &Host) -> Result<()> {
        if let [_one] = &*self.dirs {
            return enter(&cgroup::node_dir(&world.layout, &host.name)?.join("agent"), agent);
        }
        self.dirs.iter().try_for_each(|dir| enter(dir.parent().unwrap_or(dir), agent))
    }

    /// How many processes the kernel killed here.
    fn killed(&self) -> Result<u64> {
        let text = fs::read_to_string(&self.events)?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        let count = count.and_then(|count| count.parse().ok());
        count.with_context(|| format!("{} has no oom_kill", self.events.display()))
    }
}

impl Drop for Cells {
    fn drop(&mut self) {
        for dir in &self.dirs {
            let _nothing_left = fs::remove_dir(dir);
        }
    }
}

/// Moves a process; one that has ended by itself is no failure.
fn enter(dir: &Path, process: &Started) -> Result<()> {
    let path = dir.join("cgroup.procs");
    match fs::write(&path, process.pid.to_string()) {
        Err(error) if error.raw_os_error() != Some(nix::errno::Errno::ESRCH as i32) => {
            Err(error).with_context(|| format!("write to {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("write {value} to {}", path.display()))
}
