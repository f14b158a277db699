//! What Prometheus' client libraries say of the process, under their names, and the version as
//! kube-proxy says its own.

use std::{fmt::Write as _, fs};

use nix::{
    sys::resource::{Resource, getrlimit},
    unistd::{SysconfVar, sysconf},
};

/// Of this process, as far as the kernel tells.
pub(super) fn write(text: &mut String) {
    let Some(stat) = Stat::read() else { return };
    let started = stat.started();
    let rows: [(&str, &str, &str, Option<f64>); 6] = [
        ("cpu_seconds_total", "counter", "CPU time that was spent, in seconds", stat.cpu()),
        ("open_fds", "gauge", "Open file descriptors", open_descriptors()),
        ("max_fds", "gauge", "File descriptors that may be open", max_descriptors()),
        ("start_time_seconds", "gauge", "When the process began, in seconds after 1970", started),
        ("virtual_memory_bytes", "gauge", "Virtual memory size in bytes", Some(stat.virtual_bytes)),
        ("resident_memory_bytes", "gauge", "Resident memory size in bytes", stat.resident()),
    ];
    for (name, kind, help, value) in rows {
        let Some(value) = value else { continue };
        let name = format!("process_{name}");
        // Writing to a String can't fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    }
}

/// The version, where kube-proxy has its own.
pub(super) fn write_build(text: &mut String) {
    let name = "kubernetes_build_info";
    let version = concat!("mizzen-", env!("CARGO_PKG_VERSION"));
    let (system, machine) = (std::env::consts::OS, std::env::consts::ARCH);
    let labels = format!("git_version=\"{version}\",platform=\"{system}/{machine}\"");
    let _ = write!(
        text,
        "# HELP {name} 1, with the version of the agent\n# TYPE {name} gauge\n{name}{{{labels}}} 1\n"
    );
}

/// Of `/proc/self/stat`, in the kernel's units.
struct Stat {
    cpu_ticks: f64,
    started_ticks: f64,
    virtual_bytes: f64,
    resident_pages: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::of(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// The fields behind the program's name, which may have anything in it; the third is the first.
    fn of(text: &str) -> Option<Self> {
        let (_, behind) = text.rsplit_once(')')?;
        let fields: Vec<_> = behind.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            started_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }

    fn cpu(&self) -> Option<f64> {
        Some(self.cpu_ticks / of_system(SysconfVar::CLK_TCK)?)
    }

    fn resident(&self) -> Option<f64> {
        Some(self.resident_pages * of_system(SysconfVar::PAGE_SIZE)?)
    }

    /// The kernel counts from when the machine began.
    fn started(&self) -> Option<f64> {
        let text = fs::read_to_string("/proc/stat").ok()?;
        let booted: f64 =
            text.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
        Some(booted + self.started_ticks / of_system(SysconfVar::CLK_TCK)?)
    }
}

fn of_system(what: SysconfVar) -> Option<f64> {
    u32::try_from(sysconf(what).ok()??).ok().map(f64::from)
}

fn open_descriptors() -> Option<f64> {
    // One is that of the folder, and open while it is read.
    let open = fs::read_dir("/proc/self/fd").ok()?.count().checked_sub(1)?;
    u32::try_from(open).ok().map(f64::from)
}

fn max_descriptors() -> Option<f64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    u32::try_from(soft).ok().map(f64::from)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn value(text: &str, name: &str) -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    #[test]
    fn a_name_of_any_letters_hides_no_field() {
        let text =
            "7 (a) b) ( c) S 1 7 7 0 -1 4194560 10 0 0 0 250 50 0 0 20 0 9 0 1234 8192 3 1 1";
        let stat = Stat::of(text).unwrap();
        assert_eq!((stat.cpu_ticks, stat.started_ticks), (300.0, 1234.0));
        assert_eq!((stat.virtual_bytes, stat.resident_pages), (8192.0, 3.0));
        assert!(Stat::of("7 (a) S 1").is_none());
    }

    #[test]
    fn what_is_said_of_this_process_is_so() {
        let mut text = String::new();
        let files: Vec<_> = (0..20).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        write(&mut text);
        let open = value(&text, "process_open_fds");
        assert!(open >= 20.0 && open <= value(&text, "process_max_fds"), "{text}");
        drop(files);
        let resident = value(&text, "process_resident_memory_bytes");
        assert!(
            resident > 0.0 && resident < value(&text, "process_virtual_memory_bytes"),
            "{text}"
        );
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let started = value(&text, "process_start_time_seconds");
        assert!(started > 1e9 && started < (now + Duration::from_secs(2)).as_secs_f64(), "{text}");
        assert!(value(&text, "process_cpu_seconds_total") >= 0.0);
    }
}
