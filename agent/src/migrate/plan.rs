//! What follows from what there is: steps, and what is in their way. Pure.

use serde::{Deserialize, Serialize};

use super::{
    leftovers::Leftovers,
    look::{Agent, Process, Seen},
};
use crate::netfilter::{
    Family,
    legacy::{self, Unread},
    ruleset::Removal,
};

/// A step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Keep the connections of kube-proxy's rules translated.
    Hold {
        /// How many there are.
        connections: usize,
    },
    /// Remove its rules.
    Remove {
        /// In words, a piece each.
        words: Vec<String>,
        /// What the kernel is told.
        removal: Removal,
    },
    /// Remove those that it made by `iptables-legacy`.
    RemoveLegacy {
        /// In words, a piece for each table.
        words: Vec<String>,
        /// The tables, and what they become, one after the other.
        changes: Vec<legacy::Change>,
    },
    /// Give up what an agent that is gone left to the programs: the addresses of cluster DNS.
    GiveUpNames,
    /// Take Mizzen's datapath out of force.
    Detach,
}

impl Step {
    /// As the operator reads it.
    pub fn words(&self) -> String {
        match self {
            Self::Hold { connections } => format!(
                "keep the {connections} connections translated that kube-proxy's rules made (nftables \
                 table {}, which the agent removes when the last is over)",
                super::hold::TABLE
            ),
            Self::Remove { words, .. } | Self::RemoveLegacy { words, .. } => {
                format!("remove kube-proxy's rules: {}", words.join("; "))
            }
            Self::GiveUpNames => {
                "give up the addresses of cluster DNS (local routes, nftables tables mizzen-dns) \
                 that an agent left on this node: nobody answers there without Mizzen's programs"
                    .to_owned()
            }
            Self::Detach => {
                "detach all of Mizzen's programs and forget its tables: what sockets translated goes \
                 on, connections of the packet path (node ports from outside) end; pods that Mizzen \
                 connects lose tunnels, masquerading and host ports until an agent with services \
                 runs again"
                    .to_owned()
            }
        }
    }
}

/// Something that has to be seen to first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obstacle {
    /// What is in the way.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// What would be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Running kube-proxies.
    pub processes: Vec<Process>,
    /// In order.
    pub steps: Vec<Step>,
    /// Nothing is done where there are any.
    pub obstacles: Vec<Obstacle>,
    /// What an operator should know besides.
    pub notes: Vec<String>,
}

impl Plan {
    /// The way to Mizzen alone. `stopped` says that the operator knows that no kube-proxy runs here.
    pub fn apply(seen: &Seen, stopped: bool) -> Self {
        let leftovers = Leftovers::of(&seen.ruleset);
        let legacy = remove_legacy(seen);
        let mut steps = Vec::new();
        let unread = !seen.unread.is_empty() && seen.translated > 0 && !seen.held;
        if !leftovers.is_empty() || legacy.is_some() || unread {
            // Held also where no connection is seen: one may begin before the rules are gone. And
            // where others will remove the rules.
            steps.push(Step::Hold { connections: seen.translated });
        }
        if !leftovers.is_empty() {
            steps.push(Step::Remove { words: leftovers.words(), removal: leftovers.removal() });
        }
        steps.extend(legacy);
        let obstacles = if steps.is_empty() && seen.processes.is_empty() {
            Vec::new()
        } else {
            obstacles(seen, stopped)
        };
        Self { processes: seen.processes.clone(), steps, obstacles, notes: notes(seen, &leftovers) }
    }

    /// The way back to kube-proxy, where Mizzen's datapath is in force, with services of these
    /// families, or not. `serves` says that the operator knows that kube-proxy does, where that can't
    /// be seen.
    pub fn rollback(seen: &Seen, services: Option<&[Family]>, serves: bool) -> Self {
        let in_force = services.is_some();
        let mut obstacles = Vec::new();
        let without = not_served(seen, services.unwrap_or_default());
        if !without.is_empty() && !serves {
            obstacles.push(no_rules(seen, &without));
        }
        if in_force && seen.processes.is_empty() && seen.sees_processes {
            obstacles.push(Obstacle {
                what: "no kube-proxy runs on this node: its rules would lead to pods that are gone"
                    .to_owned(),
                remedy: "have it run on this node again".to_owned(),
            });
        }
        if in_force && let Agent::Serves { .. } = seen.agent {
            obstacles.push(Obstacle {
                what: "this node's agent runs and keeps its services in force".to_owned(),
                remedy:
                    "stop it: delete Mizzen's DaemonSet, or set `services: false` where it stays \
                         for pods or DNS"
                        .to_owned(),
            });
        }
        let mut steps = Vec::new();
        if in_force {
            // An agent that runs has them for itself. First, so that what fails is done again.
            if let Agent::Away(_) = seen.agent {
                steps.push(Step::GiveUpNames);
            }
            steps.push(Step::Detach);
        }
        Self { processes: seen.processes.clone(), steps, obstacles, notes: Vec::new() }
    }

    /// Whether nothing of kube-proxy is left, and nothing is to be done.
    pub fn is_done(&self) -> bool {
        self.steps.is_empty() && self.obstacles.is_empty()
    }
}

/// What removes kube-proxy's rules from the tables of `iptables-legacy`.
fn remove_legacy(seen: &Seen) -> Option<Step> {
    let (mut words, mut changes) = (Vec::new(), Vec::new());
    for table in &seen.legacy {
        let leftovers = Leftovers::of(&table.ruleset());
        let Some(change) = table.without(&leftovers.removal()) else { continue };
        let said = leftovers.words_by(legacy::program);
        words.extend(said.into_iter().map(|said| format!("{said} (table {})", table.name)));
        changes.push(change);
    }
    (!changes.is_empty()).then_some(Step::RemoveLegacy { words, changes })
}

/// The families, of these, in which kube-proxy is not seen to have a service.
///
/// Virtual servers of ipvs are no sign of it: `apply` leaves them, so they may be of long ago. In that
/// mode too kube-proxy has rules in KUBE-SERVICES, and writes them when the virtual servers are as they
/// should be; those `apply` removed.
fn not_served(seen: &Seen, services: &[Family]) -> Vec<Family> {
    let mut serves = Leftovers::of(&seen.ruleset).serves;
    serves.extend(seen.legacy.iter().flat_map(|table| Leftovers::of(&table.ruleset()).serves));
    services.iter().filter(|family| !serves.contains(family)).copied().collect()
}

fn no_rules(seen: &Seen, without: &[Family]) -> Obstacle {
    let families = without.iter().map(|family| match family {
        Family::Ipv4 => "IPv4",
        Family::Ipv6 => "IPv6",
    });
    let families = families.collect::<Vec<_>>().join(" and ");
    let mut what = format!(
        "kube-proxy's rules for services of {families} are not there: without Mizzen this node would \
         have no such services"
    );
    if without.iter().any(|family| seen.ipvs.contains(family)) {
        what.push_str(
            ", or old ones (the virtual servers of ipvs may be of a kube-proxy that is gone: one that \
             runs writes rules in KUBE-SERVICES after them)",
        );
    }
    let remedy = if seen.unread.is_empty() {
        "have kube-proxy run on this node again, and wait for its rules".to_owned()
    } else {
        format!(
            "have kube-proxy run on this node again, and wait for its rules; iptables-legacy has \
             tables that can't be read ({}): where `iptables-legacy-save -t nat` and \
             `ip6tables-legacy-save -t nat` show rules in KUBE-SERVICES, take the agent off this \
             node and say `mizzen migrate rollback --kube-proxy-serves` here",
            named(&seen.unread)
        )
    };
    Obstacle { what, remedy }
}

fn named(unread: &[Unread]) -> String {
    let names = unread.iter().map(|table| format!("{} {}", table.family.name(), table.name));
    names.collect::<Vec<_>>().join(", ")
}

fn obstacles(seen: &Seen, stopped: bool) -> Vec<Obstacle> {
    let mut obstacles: Vec<_> = seen.processes.iter().map(still_runs).collect();
    if !seen.sees_processes && !stopped {
        obstacles.push(Obstacle {
            what:
                "the processes of this node can't be seen from here, and a kube-proxy among them \
                   would write its rules again"
                    .to_owned(),
            remedy: "run this on the node itself or in a pod with `hostPID: true`, or say \
                     `--kube-proxy-is-stopped` where you know it"
                .to_owned(),
        });
    }
    match &seen.agent {
        Agent::Serves { .. } => {}
        Agent::Waits(why) => obstacles.push(Obstacle {
            what: format!("this node's agent does not serve yet: {why}"),
            remedy: "see `mizzen status` and `mizzen check`; services go on by kube-proxy's rules \
                     meanwhile"
                .to_owned(),
        }),
        Agent::Away(why) => obstacles.push(Obstacle {
            what: format!("this node's agent does not answer: {why}"),
            remedy: "install Mizzen on this node first; services go on by kube-proxy's rules \
                     meanwhile"
                .to_owned(),
        }),
    }
    obstacles
}

fn still_runs(process: &Process) -> Obstacle {
    Obstacle {
        what: format!(
            "kube-proxy still runs (process {}) and would write its rules again",
            process.pid
        ),
        remedy:
            "take it off this node: delete its DaemonSet, or keep it away by a node selector or an \
             affinity"
                .to_owned(),
    }
}

fn notes(seen: &Seen, leftovers: &Leftovers) -> Vec<String> {
    let mut notes = Vec::new();
    if seen.held {
        notes.push(format!(
            "{} connections that kube-proxy's rules translated go on without them",
            seen.translated
        ));
    }
    let of_legacy = seen.legacy.iter().map(|table| Leftovers::of(&table.ruleset()));
    let of_legacy: Vec<_> = of_legacy.collect();
    let all = || of_legacy.iter().chain([leftovers]);
    if all().any(|leftovers| leftovers.keeps_forward) {
        notes.push(
            "FORWARD drops what no rule accepts: kube-proxy's chain KUBE-FORWARD stays, since \
             connections that go on need it; remove it when they are over"
                .to_owned(),
        );
    }
    for rule in all().flat_map(|leftovers| &leftovers.in_use) {
        notes.push(format!(
            "chain {} of table {} {} is not kube-proxy's and leads to {}: that stays, with what it \
             needs",
            rule.chain.name,
            rule.chain.family.name(),
            rule.chain.table,
            rule.leads_to.join(", ")
        ));
    }
    for Unread { family, name, why } in &seen.unread {
        notes.push(format!(
            "{program} has a table {name} that can't be read, and kube-proxy's rules in it stay: \
             {why}; see whether `{program}-save -t {name} | grep KUBE-` shows any, and after `apply` \
             have `kube-proxy --cleanup` remove them",
            program = legacy::program(*family)
        ));
    }
    if !seen.ipvs.is_empty() {
        notes.push(
            "the kernel has virtual servers of ipvs: where they are kube-proxy's, have \
             `kube-proxy --cleanup` remove them once it is stopped; their connections end with them"
                .to_owned(),
        );
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::ruleset::{Base, Chain, Rule, Ruleset, VerdictMap};

    /// A node with kube-proxy and its nftables' rules for these families.
    fn seen(families: &[Family]) -> Seen {
        let mut ruleset = Ruleset::default();
        for family in families.iter().copied() {
            let (table, name) = ("kube-proxy".to_owned(), "service-ips".to_owned());
            let chain = Chain { family, table: table.clone(), name: "nat-output".to_owned() };
            ruleset.chains.push(chain.clone());
            ruleset.bases.push(Base { chain, kind: "nat".to_owned(), drops: false });
            ruleset.maps.push(VerdictMap { family, table, name, is_empty: false });
        }
        Seen {
            processes: vec![Process { pid: 1, command: "kube-proxy".to_owned() }],
            sees_processes: true,
            ruleset,
            legacy: Vec::new(),
            unread: Vec::new(),
            ipvs: Vec::new(),
            translated: 0,
            held: false,
            agent: Agent::Away("none".to_owned()),
        }
    }

    fn in_the_way(seen: &Seen, services: &[Family], serves: bool) -> Vec<String> {
        let plan = Plan::rollback(seen, Some(services), serves);
        plan.obstacles.into_iter().map(|it| it.what + " -> " + &it.remedy).collect()
    }

    #[test]
    fn every_family_with_services_has_to_be_served_before_mizzen_goes() {
        assert_eq!(in_the_way(&seen(&Family::ALL), &Family::ALL, false), Vec::<String>::new());
        let one = seen(&[Family::Ipv4]);
        assert_eq!(in_the_way(&one, &[Family::Ipv4], false), Vec::<String>::new());
        let said = in_the_way(&one, &Family::ALL, false);
        assert!(said.len() == 1 && said[0].contains("services of IPv6 are"), "{said:?}");
        let said = in_the_way(&seen(&[]), &Family::ALL, false);
        assert!(said[0].contains("services of IPv4 and IPv6 are"), "{said:?}");
        let ipvs = Seen { ipvs: vec![Family::Ipv6], ..one };
        let said = in_the_way(&ipvs, &Family::ALL, false);
        assert!(said.len() == 1 && said[0].contains("of ipvs may be of a kube-proxy"), "{said:?}");
        let nothing = Plan::rollback(&seen(&[]), None, false);
        assert_eq!((nothing.obstacles, nothing.steps), (Vec::new(), Vec::new()));
    }

    /// What an agent that runs for names alone has is its own.
    #[test]
    fn what_an_agent_left_for_names_goes_with_the_programs() {
        let away = seen(&Family::ALL);
        let steps = |seen: &Seen| Plan::rollback(seen, Some(&Family::ALL), false).steps;
        assert_eq!(steps(&away), [Step::GiveUpNames, Step::Detach]);
        let for_names = Agent::Waits("it does not have the role `services`".to_owned());
        assert_eq!(steps(&Seen { agent: for_names, ..away }), [Step::Detach]);
    }

    /// As kube-proxy's ipvs mode leaves a node: its virtual servers are from before `apply`, and its
    /// rules come when it has brought them up to date.
    #[test]
    fn virtual_servers_of_ipvs_count_with_the_rules_that_follow_them() {
        let mut ipvs = Seen { ipvs: Family::ALL.to_vec(), ..seen(&[]) };
        let said = in_the_way(&ipvs, &Family::ALL, false);
        assert!(said.len() == 1 && said[0].contains("IPv4 and IPv6"), "{said:?}");
        assert!(said[0].contains("KUBE-SERVICES after them"), "{said:?}");
        for family in Family::ALL {
            let chain =
                |name: &str| Chain { family, table: "nat".to_owned(), name: name.to_owned() };
            let rule = |from: &str, to: &str| Rule {
                chain: chain(from),
                handle: 1,
                leads_to: vec![to.to_owned()],
            };
            ipvs.ruleset.chains.push(chain("KUBE-SERVICES"));
            ipvs.ruleset.rules.push(rule("PREROUTING", "KUBE-SERVICES"));
            assert!(!in_the_way(&ipvs, &[family], false).is_empty(), "it has just made the chain");
            ipvs.ruleset.rules.push(rule("KUBE-SERVICES", "KUBE-NODE-PORT"));
            assert_eq!(in_the_way(&ipvs, &[family], false), Vec::<String>::new());
        }
        assert_eq!(in_the_way(&ipvs, &Family::ALL, false), Vec::<String>::new());
    }

    /// Any table there, of whomever, is no sign of kube-proxy.
    #[test]
    fn what_can_not_be_read_counts_where_the_operator_says_so() {
        let (family, name) = (Family::Ipv6, "nat".to_owned());
        let unread = Unread { family, name, why: "of the test".to_owned() };
        let legacy = Seen { unread: vec![unread], ..seen(&[]) };
        let said = in_the_way(&legacy, &Family::ALL, false);
        assert!(said.len() == 1 && said[0].contains("--kube-proxy-serves"), "{said:?}");
        assert_eq!(in_the_way(&legacy, &Family::ALL, true), Vec::<String>::new());
        let plan = Plan::apply(&Seen { processes: Vec::new(), ..legacy.clone() }, true);
        let [note] = &plan.notes[..] else { panic!("{plan:?}") };
        assert!(note.contains("ip6tables-legacy") && note.contains("of the test"), "{note}");
        assert_eq!(plan.steps, [], "there is nothing to hold");
        let translated = Seen { processes: Vec::new(), translated: 3, ..legacy };
        let plan = Plan::apply(&translated, true);
        assert_eq!(plan.steps, [Step::Hold { connections: 3 }], "others will remove the rules");
    }
}
