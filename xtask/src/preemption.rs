//! Which preemption model the kernel runs under: what the fault tests show of readers that are
//! interrupted (R7) they show for that one.

use std::fmt;

use crate::invoke;

/// A preemption model, by its name on the kernel's command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preemption {
    /// `none`, `voluntary`, `lazy`, `full`, `rt`; `unknown` where nothing tells.
    pub model: String,
    /// What told.
    told_by: &'static str,
}

impl Preemption {
    /// Of this machine's kernel.
    pub fn of_kernel() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let release = read("/proc/sys/kernel/osrelease");
        let told = Told {
            switch: read("/sys/kernel/debug/sched/preempt"),
            version: read("/proc/sys/kernel/version"),
            command_line: read("/proc/cmdline"),
            config: invoke::capture(&mut invoke::command("zcat", ["/proc/config.gz"]))
                .unwrap_or_else(|_| read(&format!("/boot/config-{}", release.trim()))),
        };
        told.model()
    }

    /// Whether a task may take the place of another in the midst of a program of the kernel; by
    /// `lazy`, at a tick.
    pub fn is_preemptible(&self) -> bool {
        matches!(&*self.model, "lazy" | "full" | "rt")
    }
}

impl fmt::Display for Preemption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (by {})", self.model, self.told_by)
    }
}

/// What there is to read; empty where there is none.
#[derive(Debug, Default)]
struct Told {
    /// `none voluntary (full) lazy`, where root may read it.
    switch: String,
    /// `#1 SMP PREEMPT_DYNAMIC …`.
    version: String,
    command_line: String,
    /// What the kernel was built with.
    config: String,
}

impl Told {
    /// The switch goes before what was asked for at boot, that before what the kernel was built
    /// with.
    fn model(&self) -> Preemption {
        let found = |model: &str, told_by| Preemption { model: model.to_owned(), told_by };
        if self.version.contains("PREEMPT_RT") {
            return found("rt", "the kernel's version");
        }
        let chosen = self.switch.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
        if let Some((model, _)) = chosen {
            return found(model, "/sys/kernel/debug/sched/preempt");
        }
        let dynamic = self.version.contains("PREEMPT_DYNAMIC");
        let booted = || {
            let mut words = self.command_line.split_whitespace().rev();
            words.find_map(|word| word.strip_prefix("preempt="))
        };
        if let Some(model) = booted().filter(|_| dynamic) {
            return found(model, "the kernel's command line");
        }
        for (line, model) in [
            ("CONFIG_PREEMPT_NONE=y", "none"),
            ("CONFIG_PREEMPT_VOLUNTARY=y", "voluntary"),
            ("CONFIG_PREEMPT_LAZY=y", "lazy"),
            ("CONFIG_PREEMPT=y", "full"),
        ] {
            if self.config.lines().any(|of| of == line) {
                return found(model, "the kernel's configuration");
            }
        }
        if self.version.split_whitespace().any(|word| word == "PREEMPT") {
            return found("full", "the kernel's version");
        }
        found("unknown", "nothing that the kernel tells")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tells_more_surely_goes_first() {
        let dynamic = "#1 SMP PREEMPT_DYNAMIC @0";
        let built = "CONFIG_PREEMPT_BUILD=y\nCONFIG_PREEMPT_NONE=y\n# CONFIG_PREEMPT is not set\n";
        for (switch, version, command_line, config, model, preemptible) in [
            ("none voluntary (full) lazy\n", dynamic, "preempt=none", built, "full", true),
            ("", dynamic, "quiet preempt=full ro", built, "full", true),
            ("", dynamic, "quiet", built, "none", false),
            ("", dynamic, "quiet", "CONFIG_PREEMPT_LAZY=y", "lazy", true),
            ("", "#1 SMP", "preempt=full", "CONFIG_PREEMPT_VOLUNTARY=y", "voluntary", false),
            ("", "#1 SMP PREEMPT_RT 2026", "", "CONFIG_PREEMPT_RT=y", "rt", true),
            ("", "#1 SMP PREEMPT Debian", "", "", "full", true),
            ("", dynamic, "", "", "unknown", false),
        ] {
            let [switch, version, command_line, config] =
                [switch, version, command_line, config].map(str::to_owned);
            let found = Told { switch, version, command_line, config }.model();
            assert_eq!((&*found.model, found.is_preemptible()), (model, preemptible), "{found}");
        }
    }
}
