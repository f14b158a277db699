//! The part of Go that Kubernetes' API types are written in: structs with tagged fields, and names
//! for other types.

use std::collections::BTreeMap;

/// The types of one file.
#[derive(Debug, Default)]
pub(super) struct File {
    /// Structs by name.
    pub(super) structs: BTreeMap<String, Vec<Field>>,
    /// Other types by name, as text.
    pub(super) names: BTreeMap<String, String>,
    /// Imported packages: the name that the file uses, and the path.
    pub(super) imports: BTreeMap<String, String>,
}

/// A field of a struct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    /// JSON name; empty if the fields of its type stand in its place.
    pub(super) name: String,
    /// Whether JSON leaves it out when it is empty.
    pub(super) omits_empty: bool,
    /// Field number in protobuf; 0 if it has none.
    pub(super) number: u32,
    /// Type, as text.
    pub(super) kind: String,
    /// `patchStrategy`.
    pub(super) strategy: String,
    /// `patchMergeKey`.
    pub(super) key: String,
}

/// Reads a file. What is neither an import nor a type is skipped.
pub(super) fn parse(text: &str) -> File {
    let mut file = File::default();
    let mut lines = text.lines().map(str::trim_end);
    while let Some(line) = lines.next() {
        if line == "import (" {
            let imports = lines.by_ref().take_while(|line| *line != ")");
            file.imports.extend(imports.filter_map(import));
        } else if let Some(declared) = line.strip_prefix("type ") {
            let Some((name, kind)) = declared.split_once(' ') else { continue };
            if kind == "struct {" {
                let body = lines.by_ref().take_while(|line| *line != "}");
                file.structs.insert(name.to_owned(), body.filter_map(field).collect());
            } else if !kind.starts_with("struct") && !kind.starts_with("interface") {
                let kind = kind.trim_start_matches("= ").split("//").next().unwrap_or_default();
                file.names.insert(name.to_owned(), kind.trim().to_owned());
            }
        }
    }
    file
}

/// `metav1 "k8s.io/…"`.
fn import(line: &str) -> Option<(String, String)> {
    let (name, rest) = line.trim().split_once('"')?;
    let path = rest.split('"').next()?;
    let last = path.rsplit('/').next()?;
    let name = if name.trim().is_empty() { last } else { name.trim() };
    Some((name.to_owned(), path.to_owned()))
}

/// ``Name Type `json:"name,omitempty" protobuf:"bytes,1,opt,name=name"` ``.
fn field(line: &str) -> Option<Field> {
    let line = line.trim();
    if line.starts_with("//") {
        return None;
    }
    let (declared, tags) = line.split_once('`')?;
    let mut words = declared.split_whitespace();
    let first = words.next()?;
    // An embedded field has only its type.
    let kind = words.next().unwrap_or(first);
    let mut json = tag(tags, "json").split(',');
    let name = json.next().unwrap_or_default();
    let mut options = json.clone();
    if name == "-" {
        return None;
    }
    let name = if options.any(|option| option == "inline") { "" } else { name };
    let number = tag(tags, "protobuf").split(',').nth(1).and_then(|number| number.parse().ok());
    Some(Field {
        name: name.to_owned(),
        omits_empty: json.any(|option| option == "omitempty" || option == "omitzero"),
        number: number.unwrap_or(0),
        kind: kind.to_owned(),
        strategy: tag(tags, "patchStrategy").to_owned(),
        key: tag(tags, "patchMergeKey").to_owned(),
    })
}

/// The value of one tag.
fn tag<'a>(tags: &'a str, name: &str) -> &'a str {
    let start = format!("{name}:\"");
    let Some(at) = tags.find(&start) else { return "" };
    tags[at + start.len()..].split('"').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "
import (
\tmetav1 \"k8s.io/apimachinery/pkg/apis/meta/v1\"
\t\"k8s.io/apimachinery/pkg/util/intstr\"
)
type Mode string // how
type A struct {
\t// Comment with `json:\"not\"`
\tmetav1.TypeMeta `json:\",inline\"`
\tSource `json:\"\" protobuf:\"bytes,2,opt,name=source\"`
\tItems []Mode `json:\"items,omitempty\" patchStrategy:\"merge\" patchMergeKey:\"name\" protobuf:\"bytes,1,rep,name=items\"`
\tHidden string `json:\"-\"`
}
";

    #[test]
    fn structs_names_and_imports_are_found() {
        let file = parse(SOURCE);
        assert_eq!(file.imports["intstr"], "k8s.io/apimachinery/pkg/util/intstr");
        assert_eq!(file.names["Mode"], "string");
        let fields = &file.structs["A"];
        let seen: Vec<_> =
            fields.iter().map(|field| (field.name.as_str(), field.number, &*field.kind)).collect();
        assert_eq!(seen, [("", 0, "metav1.TypeMeta"), ("", 2, "Source"), ("items", 1, "[]Mode")]);
        assert!(fields[2].omits_empty && fields[2].strategy == "merge" && fields[2].key == "name");
    }
}
