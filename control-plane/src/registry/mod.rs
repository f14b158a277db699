//! The table of kinds. Everything the API server does with an object, it does by its row here:
//! where it lives, what its subresources are, how it is defaulted, checked, patched and printed.
//!
//! A new kind is a row in [`kinds`]. A kind that does more than the table can say adds a
//! [`Strategy`] in a file of its own.

pub mod columns;
pub mod invalid;
pub mod kinds;
pub mod names;
pub mod object;
pub mod rules;
pub mod selector;
pub mod strategy;
pub mod template;
pub mod view;

mod autoscaling;
mod batch;
mod budget;
mod certificate;
mod configuration;
pub mod counters;
mod endpoints;
mod event;
mod job;
mod limits;
mod namespace;
mod networking;
mod node;
mod pod;
pub mod priority;
mod quota;
mod rbac;
pub mod service;
mod storage;
mod workload;

pub use object::Object;
pub use strategy::Strategy;

/// Whether objects of a kind live in namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In a namespace.
    Namespaced,
    /// In the cluster.
    Cluster,
}

/// What a subresource is, and so which code serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// `status`: the same object, of which only the status can be written.
    Status,
    /// `scale`: `autoscaling/v1 Scale` over `spec.replicas`.
    Scale,
    /// `binding`: assigns a pod to a node.
    Binding,
    /// `approval`: the same object, of which only the decisions can be written.
    Approval,
    /// `eviction`: deletes a pod if that is allowed.
    Eviction,
    /// `log`: the log of a pod's container, from its node.
    Log,
    /// `exec`: a command in a pod's container, by its node.
    Exec,
    /// `finalize`: writes `spec.finalizers` of a namespace.
    Finalize,
    /// `token`: a token of a service account.
    Token,
}

/// What a kind answers of which nothing is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Review {
    /// Whose a token is.
    Token,
    /// Who is asking.
    Own,
    /// Whether somebody may do something.
    Access,
    /// The same, asked of one namespace.
    LocalAccess,
    /// Whether who is asking may do something.
    OwnAccess,
    /// What who is asking may do.
    OwnRules,
}

impl Subresource {
    /// The path segment.
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Binding => "binding",
            Self::Approval => "approval",
            Self::Eviction => "eviction",
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Finalize => "finalize",
            Self::Token => "token",
        }
    }
}

/// How the names of a kind's objects are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// Whatever the kind's rules demand.
    Any,
    /// RFC 1123 subdomain, at most 253 characters.
    Subdomain,
    /// RFC 1123 label, at most 63 characters.
    Label,
    /// RFC 1035 label: as RFC 1123, but beginning with a letter.
    Label1035,
    /// Anything that can be a segment of a path.
    PathSegment,
}

/// One kind of object.
#[expect(clippy::struct_excessive_bools, reason = "a row of facts, not a state")]
pub struct Kind {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// API version, such as `v1`.
    pub version: &'static str,
    /// The kind's name, such as `Pod`.
    pub kind: &'static str,
    /// The resource's name in paths, such as `pods`.
    pub plural: &'static str,
    /// The resource's name for one object, such as `pod`.
    pub singular: &'static str,
    /// Short names for the command line.
    pub short_names: &'static [&'static str],
    /// Groups of resources that it belongs to, such as `all`.
    pub categories: &'static [&'static str],
    /// Where its objects live.
    pub scope: Scope,
    /// Its subresources.
    pub subresources: &'static [Subresource],
    /// What can be done with its objects.
    pub verbs: &'static [&'static str],
    /// What is answered at once, for a kind of which nothing is kept.
    pub review: Option<Review>,
    /// Rule for names.
    pub names: NameRule,
    /// Whether `metadata.generation` counts changes of what the user wants.
    pub counts_generations: bool,
    /// Whether an update may leave `metadata.resourceVersion` out.
    pub unconditional_update: bool,
    /// Whether PUT of an object that does not exist creates it.
    pub create_on_update: bool,
    /// Whether DELETE answers with the object instead of a Status.
    pub returns_deleted: bool,
    /// Whether dependents of a deleted object stay, unless the deletion says otherwise.
    pub orphans: bool,
    /// Seconds after which an object goes by itself, counted from what it says happened last.
    pub time_to_live: Option<i64>,
    /// Selectable fields besides `metadata.name` and `metadata.namespace`: label, JSON pointer, and
    /// what an object has that does not say.
    pub selectable: &'static [(&'static str, &'static str, &'static str)],
    /// JSON pointers of fields that must be there.
    pub required: &'static [&'static str],
    /// JSON pointers of fields that can't be changed.
    pub immutable: &'static [&'static str],
    /// What must hold for its fields.
    pub rules: &'static [rules::Rule],
    /// What must hold for the numbers of its status.
    pub counters: &'static [counters::Counter],
    /// What stands in fields by default.
    pub defaults: &'static [rules::Default],
    /// Its template of pods.
    pub template: Option<template::Template>,
    /// Why nobody should use it any more, as a warning says it; empty if it is as good as ever.
    pub deprecated: &'static str,
    /// Whose objects it shows, if they are not its own.
    pub view: Option<&'static view::View>,
    /// Columns of its table.
    pub columns: &'static [columns::Column],
    /// What its table can't say.
    pub strategy: &'static dyn Strategy,
}

impl Kind {
    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    /// `pods` or `deployments.apps`: how messages name the resource.
    pub fn qualified_plural(&self) -> String {
        qualified(self.plural, self.group)
    }

    /// `Pod` or `Deployment.apps`: how messages name the kind.
    pub fn qualified_kind(&self) -> String {
        qualified(self.kind, self.group)
    }

    /// Whether objects live in namespaces.
    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// Whether the kind has a subresource.
    pub fn has(&self, subresource: Subresource) -> bool {
        self.subresources.contains(&subresource)
    }

    /// Fills in what the API documents as default.
    pub fn fill(&self, object: &mut Object) {
        rules::fill(self.defaults, object.value_mut());
        if let Some(template) = &self.template {
            template.fill(object);
        }
        self.strategy.default(object);
    }

    /// Checks an object by the row, the template and the strategy.
    pub fn check(&self, object: &Object, errors: &mut invalid::Errors) {
        for pointer in self.required {
            if object.at(pointer).is_none() {
                errors.required(invalid::field_of(pointer), "");
            }
        }
        rules::check(self.rules, object.value(), errors);
        if let Some(template) = &self.template {
            template.check(object, errors);
        }
        self.strategy.validate(object, errors);
    }

    /// Prefix of the store's keys of this kind; with a namespace, of its objects in it.
    pub fn prefix(&self, namespace: Option<&str>) -> String {
        let group = self.view.map_or(self.group, |view| view.group);
        let group = if group.is_empty() { "core" } else { group };
        match namespace {
            Some(namespace) => format!("{group}/{}/{namespace}/", self.plural),
            None => format!("{group}/{}/", self.plural),
        }
    }

    /// Key of one object. `namespace` is empty for cluster-scoped kinds.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        let namespace = self.is_namespaced().then_some(namespace);
        self.prefix(namespace) + name
    }
}

/// `v1` or `apps/v1`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

/// All kinds that a server knows.
pub struct Registry {
    kinds: Vec<&'static Kind>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { kinds: kinds::TABLES.iter().copied().flatten().collect() }
    }
}

impl Registry {
    /// All kinds, core group first.
    pub fn kinds(&self) -> impl Iterator<Item = &'static Kind> {
        self.kinds.iter().copied()
    }

    /// The kind at a path.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
        self.kinds()
            .find(|kind| kind.plural == plural && kind.group == group && kind.version == version)
    }

    /// The kinds of a group and version, by their names in paths.
    pub fn of_version(&self, group: &str, version: &str) -> Vec<&'static Kind> {
        let fits = |kind: &&Kind| kind.group == group && kind.version == version;
        let mut kinds: Vec<&'static Kind> = self.kinds().filter(fits).collect();
        kinds.sort_by_key(|kind| kind.plural);
        kinds
    }

    /// Groups, in the order of the table.
    pub fn groups(&self) -> Vec<&'static str> {
        let mut found = Vec::new();
        for kind in self.kinds() {
            if !found.contains(&kind.group) {
                found.push(kind.group);
            }
        }
        found
    }

    /// The versions of a group; clients take the first unless they know better.
    pub fn versions(&self, group: &str) -> Vec<&'static str> {
        let versions = self.group_versions().into_iter();
        versions.filter(|(own, _)| *own == group).map(|(_, version)| version).collect()
    }

    /// Groups with their versions, in the order of the table.
    pub fn group_versions(&self) -> Vec<(&'static str, &'static str)> {
        let mut found = Vec::new();
        for kind in self.kinds() {
            if !found.contains(&(kind.group, kind.version)) {
                found.push((kind.group, kind.version));
            }
        }
        found
    }
}
