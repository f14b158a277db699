//! What kube-proxy made of rules, told from what others did by name: nftables' tables of its own, and
//! `iptables`' chains with the rules that lead into them.

use std::collections::BTreeSet;

use crate::netfilter::{
    Family,
    ruleset::{Chain, Removal, Rule, Ruleset},
};

/// The table of kube-proxy's nftables mode, in each family.
const TABLE: &str = "kube-proxy";
/// Tables of `iptables` in which its iptables mode has chains.
const IPTABLES: [&str; 3] = ["nat", "filter", "mangle"];
/// The chains of `iptables` that the kernel enters.
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// Marks what is to be masqueraded; other programs may lead to it too.
const MARK_MASQ: &str = "KUBE-MARK-MASQ";
/// Accepts what FORWARD's policy may otherwise drop, connections by node ports among it.
const FORWARD: &str = "KUBE-FORWARD";
/// Where cluster IPs and node ports are translated.
const SERVICES: &str = "KUBE-SERVICES";
/// The maps of its nftables mode in which services are found, by their addresses and by node ports.
const MAPS: [&str; 2] = ["service-ips", "service-nodeports"];
/// Masquerades what is marked.
const POSTROUTING: &str = "KUBE-POSTROUTING";
/// Its chains that are there once. What else begins with `KUBE-` may be a kubelet's: its firewall,
/// its canary, and its hint.
const CHAINS: [&str; 8] = [
    SERVICES,
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    FORWARD,
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    POSTROUTING,
    MARK_MASQ,
];
/// Beginnings of the names of its chains for services and endpoints; a hash follows.
const OF_SERVICES: [&str; 6] =
    ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-XLB-", "KUBE-FW-", "KUBE-SEP-"];
/// Letters of such a hash.
const HASH: usize = 16;

/// What kube-proxy left in netfilter, or still keeps there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Tables of its own.
    pub tables: Vec<(Family, String)>,
    /// Chains of its own in `iptables`' tables.
    pub chains: Vec<Chain>,
    /// Rules by which the kernel's chains lead into these.
    pub entrances: Vec<Rule>,
    /// Chains that would be among them, but others lead to them: by these rules.
    pub in_use: Vec<Rule>,
    /// Whether its chain of what is forwarded stays, because all that no rule accepts is dropped.
    pub keeps_forward: bool,
    /// The families in which services are translated by it.
    pub serves: Vec<Family>,
}

impl Leftovers {
    /// Those in a set of rules.
    pub fn of(ruleset: &Ruleset) -> Self {
        let tables = ruleset.chains.iter().filter(|chain| chain.table == TABLE);
        let tables: BTreeSet<_> = tables.map(|chain| (chain.family, chain.table.clone())).collect();
        let own: BTreeSet<&Chain> = ruleset.chains.iter().filter(|chain| is_own(chain)).collect();
        let into_own = |rule: &&Rule| targets(rule).any(|target| own.contains(&target));
        let foreign = ruleset.rules.iter().filter(|rule| !own.contains(&rule.chain));
        let (entrances, in_use): (Vec<&Rule>, Vec<&Rule>) =
            foreign.filter(into_own).partition(|rule| BUILT_IN.contains(&&*rule.chain.name));
        let mut kept = kept(ruleset, &in_use, &own);
        let drops = ruleset.bases.iter().filter(|base| base.drops && base.chain.name == "FORWARD");
        let forward = drops.map(|base| Chain { name: FORWARD.to_owned(), ..base.chain.clone() });
        let forward: Vec<Chain> = forward.filter(|chain| own.contains(&chain)).collect();
        let keeps_forward = !forward.is_empty();
        kept.extend(forward);
        let leads_to_kept = |rule: &Rule| targets(rule).any(|target| kept.contains(&target));
        Self {
            tables: tables.into_iter().collect(),
            chains: own.into_iter().filter(|chain| !kept.contains(chain)).cloned().collect(),
            entrances: entrances.into_iter().filter(|rule| !leads_to_kept(rule)).cloned().collect(),
            in_use: in_use.into_iter().cloned().collect(),
            keeps_forward,
            serves: Family::ALL.into_iter().filter(|family| serves(ruleset, *family)).collect(),
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.chains.is_empty() && self.entrances.is_empty()
    }

    /// What removes them.
    pub fn removal(&self) -> Removal {
        Removal {
            tables: self.tables.clone(),
            rules: self.entrances.clone(),
            chains: self.chains.clone(),
        }
    }

    /// In words: `table ip kube-proxy`, `45 chains of iptables`.
    pub fn words(&self) -> Vec<String> {
        self.words_by(|family| match family {
            Family::Ipv4 => "iptables",
            Family::Ipv6 => "ip6tables",
        })
    }

    /// The same, where the chains are those of another program.
    pub fn words_by(&self, program: impl Fn(Family) -> &'static str) -> Vec<String> {
        let tables = self.tables.iter();
        let mut words: Vec<_> =
            tables.map(|(family, name)| format!("table {} {name}", family.name())).collect();
        for family in Family::ALL {
            let chains = self.chains.iter().filter(|chain| chain.family == family).count();
            let rules = self.entrances.iter().filter(|rule| rule.chain.family == family).count();
            if chains + rules > 0 {
                words.push(format!(
                    "{chains} chains of {} and {rules} rules that lead into them",
                    program(family)
                ));
            }
        }
        words
    }
}

/// Whether the kernel enters chains of kube-proxy's that translate, and these know any service: it
/// makes the chains before it knows one.
fn serves(ruleset: &Ruleset, family: Family) -> bool {
    let own_table = ruleset
        .bases
        .iter()
        .any(|base| base.chain.family == family && base.chain.table == TABLE && base.kind == "nat");
    let known = ruleset.maps.iter().any(|map| {
        map.family == family && map.table == TABLE && MAPS.contains(&&*map.name) && !map.is_empty
    });
    let nat = || {
        let of_family = ruleset.rules.iter().filter(move |rule| rule.chain.family == family);
        of_family.filter(|rule| rule.chain.table == "nat")
    };
    let entered = nat().any(|rule| {
        BUILT_IN.contains(&&*rule.chain.name) && rule.leads_to.iter().any(|name| name == SERVICES)
    });
    own_table && known || entered && nat().any(|rule| rule.chain.name == SERVICES)
}

/// The chains that a rule leads to.
fn targets(rule: &Rule) -> impl Iterator<Item = Chain> {
    let Chain { family, table, .. } = &rule.chain;
    rule.leads_to.iter().map(|name| Chain {
        family: *family,
        table: table.clone(),
        name: name.clone(),
    })
}

/// Of kube-proxy's chains those that rules of others need, with all that these lead to.
fn kept(ruleset: &Ruleset, in_use: &[&Rule], own: &BTreeSet<&Chain>) -> BTreeSet<Chain> {
    let mut open: Vec<Chain> = in_use.iter().flat_map(|rule| targets(rule)).collect();
    let mut kept = BTreeSet::new();
    while let Some(chain) = open.pop() {
        if !own.contains(&chain) || !kept.insert(chain.clone()) {
            continue;
        }
        if chain.name == MARK_MASQ {
            // A mark that nobody looks at would do nothing.
            open.push(Chain { name: POSTROUTING.to_owned(), ..chain.clone() });
        }
        open.extend(ruleset.rules.iter().filter(|rule| rule.chain == chain).flat_map(targets));
    }
    kept
}

fn is_own(chain: &Chain) -> bool {
    let is_hash = |rest: &str| {
        rest.len() == HASH && rest.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
    };
    IPTABLES.contains(&&*chain.table)
        && (CHAINS.contains(&&*chain.name)
            || OF_SERVICES
                .iter()
                .any(|prefix| chain.name.strip_prefix(prefix).is_some_and(is_hash)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::ruleset::{Base, VerdictMap};

    fn chain(table: &str, name: &str) -> Chain {
        Chain { family: Family::Ipv4, table: table.to_owned(), name: name.to_owned() }
    }

    /// A rule in `table`/`from` that leads to `to`; handles count up.
    fn rule(handle: u64, table: &str, from: &str, to: &[&str]) -> Rule {
        let leads_to = to.iter().map(|name| (*name).to_owned()).collect();
        Rule { chain: chain(table, from), handle, leads_to }
    }

    /// Of a node in kube-proxy's iptables mode, with a kubelet and a plugin for host ports.
    fn iptables() -> Ruleset {
        let svc = "KUBE-SVC-AAAAAAAAAAAAAAA1";
        let sep = "KUBE-SEP-AAAAAAAAAAAAAAA2";
        let nat = ["PREROUTING", "POSTROUTING", "KUBE-SERVICES", POSTROUTING, MARK_MASQ, svc, sep];
        let mut chains: Vec<_> = nat.iter().map(|name| chain("nat", name)).collect();
        chains.extend(["CNI-HOSTPORT-DNAT", "KUBE-SVC-short"].map(|name| chain("nat", name)));
        chains.extend(["INPUT", "KUBE-FIREWALL", "KUBE-FORWARD"].map(|name| chain("filter", name)));
        chains
            .extend(["KUBE-KUBELET-CANARY", "KUBE-PROXY-CANARY"].map(|name| chain("mangle", name)));
        let rules = vec![
            rule(1, "nat", "PREROUTING", &["KUBE-SERVICES"]),
            rule(2, "nat", "PREROUTING", &["CNI-HOSTPORT-DNAT"]),
            rule(3, "nat", "POSTROUTING", &[POSTROUTING]),
            rule(4, "nat", "KUBE-SERVICES", &[svc]),
            rule(5, "nat", svc, &[sep]),
            rule(6, "nat", sep, &[MARK_MASQ]),
            rule(7, "filter", "INPUT", &["KUBE-FIREWALL"]),
        ];
        Ruleset { chains, rules, ..Ruleset::default() }
    }

    fn names(chains: &[Chain]) -> Vec<&str> {
        chains.iter().map(|chain| &*chain.name).collect()
    }

    #[test]
    fn all_that_kube_proxy_made_goes_and_nothing_else() {
        let found = Leftovers::of(&iptables());
        let expected = [
            "KUBE-FORWARD",
            "KUBE-PROXY-CANARY",
            "KUBE-MARK-MASQ",
            "KUBE-POSTROUTING",
            "KUBE-SEP-AAAAAAAAAAAAAAA2",
            "KUBE-SERVICES",
            "KUBE-SVC-AAAAAAAAAAAAAAA1",
        ];
        assert_eq!(names(&found.chains), expected);
        assert_eq!(found.entrances.iter().map(|rule| rule.handle).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(found.in_use, []);
    }

    /// The plugin `portmap` may mark by kube-proxy's chain.
    #[test]
    fn a_chain_that_others_lead_to_stays_with_what_it_needs() {
        let mut ruleset = iptables();
        ruleset.rules.push(rule(8, "nat", "CNI-HOSTPORT-DNAT", &[MARK_MASQ]));
        let found = Leftovers::of(&ruleset);
        assert!(!names(&found.chains).iter().any(|name| [MARK_MASQ, POSTROUTING].contains(name)));
        assert!(names(&found.chains).contains(&"KUBE-SERVICES"));
        assert_eq!(found.entrances.iter().map(|rule| rule.handle).collect::<Vec<_>>(), [1]);
        assert_eq!(found.in_use.iter().map(|rule| rule.handle).collect::<Vec<_>>(), [8]);
    }

    /// As Docker sets it: connections that go on would be dropped.
    #[test]
    fn what_accepts_stays_where_all_else_is_dropped() {
        let mut ruleset = iptables();
        let forward = chain("filter", "FORWARD");
        ruleset.rules.push(rule(9, "filter", "FORWARD", &[FORWARD]));
        ruleset.bases = vec![Base { chain: forward, kind: "filter".to_owned(), drops: true }];
        let found = Leftovers::of(&ruleset);
        assert!(found.keeps_forward && !names(&found.chains).contains(&FORWARD));
        assert!(!found.entrances.iter().any(|rule| rule.handle == 9));
        ruleset.bases[0].drops = false;
        let found = Leftovers::of(&ruleset);
        assert!(!found.keeps_forward && found.entrances.iter().any(|rule| rule.handle == 9));
    }

    #[test]
    fn it_serves_where_the_kernel_enters_its_translations() {
        assert_eq!(Leftovers::of(&iptables()).serves, [Family::Ipv4]);
        let mut ruleset = iptables();
        ruleset.rules.retain(|rule| rule.handle != 4);
        assert_eq!(Leftovers::of(&ruleset).serves, [], "a chain without a service");
        let mut ruleset = iptables();
        ruleset.rules.retain(|rule| rule.handle != 1);
        assert_eq!(Leftovers::of(&ruleset).serves, [], "chains that nothing leads to");
        let of = Chain { family: Family::Ipv6, table: TABLE.to_owned(), name: "nat".to_owned() };
        ruleset.bases = vec![Base { chain: of, kind: "nat".to_owned(), drops: false }];
        assert_eq!(Leftovers::of(&ruleset).serves, [], "a table without maps");
        for (name, is_empty, serves) in [
            ("service-ips", true, &[][..]),
            ("no-endpoint-services", false, &[]),
            ("service-ips", false, &[Family::Ipv6]),
            ("service-nodeports", false, &[Family::Ipv6]),
        ] {
            let (family, table, name) = (Family::Ipv6, TABLE.to_owned(), name.to_owned());
            ruleset.maps = vec![VerdictMap { family, table, name, is_empty }];
            assert_eq!(Leftovers::of(&ruleset).serves, serves, "{:?}", ruleset.maps);
        }
    }

    #[test]
    fn its_own_tables_go_whole() {
        let of = |family| Chain { family, table: TABLE.to_owned(), name: "services".to_owned() };
        let chains = vec![of(Family::Ipv4), of(Family::Ipv6), chain("mizzen-dns", "prerouting")];
        let found = Leftovers::of(&Ruleset { chains, ..Ruleset::default() });
        assert_eq!(found.words(), ["table ip kube-proxy", "table ip6 kube-proxy"]);
        assert_eq!(found.removal().tables.len(), 2);
        assert!(Leftovers::of(&Ruleset::default()).is_empty());
    }
}
