//! Names in the form in which they are looked up: lower case, wire format, on the stack.

use hickory_proto::rr::Name;

/// The longest name in octets, the root's zero included (RFC 1035 2.3.4).
const MAX_OCTETS: usize = 255;
/// What fits into that with labels of one octet each.
const MAX_LABELS: usize = 127;
/// The longest label in octets (RFC 1035 2.3.4).
const MAX_LABEL: usize = 63;

/// A name in lower-case wire format. Only ASCII letters have a case (RFC 4343).
#[derive(Clone)]
pub struct LowerName {
    octets: [u8; MAX_OCTETS],
    /// Where each label's length octet is; the entry after the last label is the root's zero.
    starts: [u8; MAX_LABELS + 1],
    labels: usize,
}

impl LowerName {
    /// The lower-case form of `name`.
    pub fn of(name: &Name) -> Self {
        let mut this = Self { octets: [0; MAX_OCTETS], starts: [0; MAX_LABELS + 1], labels: 0 };
        for label in name {
            this.push(label);
        }
        this
    }

    /// The lower-case form of the name at the start of `octets`, and how many octets it has there;
    /// `None` where that is no whole name written out, label by label.
    pub fn read(octets: &[u8]) -> Option<(Self, usize)> {
        let mut this = Self { octets: [0; MAX_OCTETS], starts: [0; MAX_LABELS + 1], labels: 0 };
        let mut at = 0;
        loop {
            let length = usize::from(*octets.get(at)?);
            if length == 0 {
                return Some((this, at + 1));
            }
            // The two upper bits mark pointers, and what no RFC has given a meaning.
            let end = at + 1 + length;
            if length > MAX_LABEL || end >= MAX_OCTETS || this.labels == MAX_LABELS {
                return None;
            }
            this.push(octets.get(at + 1..end)?);
            at = end;
        }
    }

    /// Appends a label. `Name` admits no more than fits; what would not is left out.
    fn push(&mut self, label: &[u8]) {
        let start = usize::from(self.starts[self.labels]);
        let end = start + 1 + label.len();
        let (Ok(length), Ok(next)) = (u8::try_from(label.len()), u8::try_from(end)) else { return };
        if end >= MAX_OCTETS || self.labels == MAX_LABELS {
            return;
        }
        self.octets[start] = length;
        for (to, from) in self.octets[start + 1..end].iter_mut().zip(label) {
            *to = from.to_ascii_lowercase();
        }
        self.labels += 1;
        self.starts[self.labels] = next;
    }

    /// Where the label with that number begins: its length octet's place in the name.
    pub fn start_of(&self, index: usize) -> usize {
        self.starts.get(index).map_or(0, |start| usize::from(*start))
    }

    /// How many labels it has, the root not counted.
    pub fn label_count(&self) -> usize {
        self.labels
    }

    /// The label with that number, counted from the left; empty where there is none.
    pub fn label(&self, index: usize) -> &[u8] {
        match self.wire_of(index, index + 1) {
            [_, label @ ..] => label,
            [] => &[],
        }
    }

    /// The wire form of the labels from `first` up to, not including, `end`, without a final zero.
    pub fn wire_of(&self, first: usize, end: usize) -> &[u8] {
        let end = end.min(self.labels);
        if first >= end {
            return &[];
        }
        &self.octets[usize::from(self.starts[first])..usize::from(self.starts[end])]
    }

    /// The whole name in wire form, the final zero included.
    pub fn wire(&self) -> &[u8] {
        &self.octets[..=usize::from(self.starts[self.labels])]
    }

    /// How many labels stand left of `origin` where the name is `origin` or below it.
    pub fn labels_below(&self, origin: &Self) -> Option<usize> {
        let below = self.labels.checked_sub(origin.labels)?;
        (self.wire_of(below, self.labels) == origin.wire_of(0, origin.labels)).then_some(below)
    }
}

impl PartialEq for LowerName {
    fn eq(&self, other: &Self) -> bool {
        self.wire() == other.wire()
    }
}

impl Eq for LowerName {}

impl std::fmt::Debug for LowerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for index in 0..self.labels {
            write!(f, "{}.", self.label(index).escape_ascii())?;
        }
        Ok(())
    }
}

/// The octets of `labels` as they stand in a wire name; `None` where one is no label: empty or
/// longer than 63 octets (RFC 1035 2.3.4).
pub fn wire_labels(labels: &[&str]) -> Option<Box<[u8]>> {
    let mut octets = Vec::with_capacity(labels.iter().map(|label| label.len() + 1).sum());
    for label in labels {
        if label.is_empty() || label.len() > MAX_LABEL {
            return None;
        }
        octets.push(u8::try_from(label.len()).ok()?);
        octets.extend(label.bytes().map(|octet| octet.to_ascii_lowercase()));
    }
    Some(octets.into())
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    fn lower(name: &str) -> LowerName {
        LowerName::of(&Name::from_str(name).unwrap())
    }

    #[test]
    fn labels_and_suffixes() {
        let name = lower("Web.Default.svc.CLUSTER.local.");
        assert_eq!(name.label_count(), 5);
        assert_eq!(name.label(0), b"web");
        assert_eq!(name.label(5), b"");
        assert_eq!(name.wire_of(0, 2), b"\x03web\x07default");
        assert_eq!(name.wire(), b"\x03web\x07default\x03svc\x07cluster\x05local\x00");
        assert_eq!(name.labels_below(&lower("cluster.local.")), Some(3));
        assert_eq!(name.labels_below(&lower("ster.local.")), None, "only whole labels");
        let inside = Name::from_labels([&b"a"[..], b"x\x07cluster\x05local"]).unwrap();
        let inside = LowerName::of(&inside);
        assert_eq!(inside.labels_below(&lower("cluster.local.")), None, "octets are no labels");
        assert_eq!(lower("local.").labels_below(&lower("cluster.local.")), None);
        assert_eq!(lower(".").wire(), b"\0");
        assert_eq!(lower("a.").labels_below(&lower(".")), Some(1));
    }

    #[test]
    fn the_longest_names_fit() {
        let many = Name::from_labels(vec!["a"; MAX_LABELS]).unwrap();
        assert_eq!(LowerName::of(&many).label_count(), MAX_LABELS);
        assert_eq!(LowerName::of(&many).wire().len(), MAX_OCTETS);
        let long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)];
        let long = LowerName::of(&Name::from_labels(long).unwrap());
        assert_eq!((long.label_count(), long.wire().len()), (4, MAX_OCTETS));
    }

    #[test]
    fn names_are_read_where_they_are_written_out() {
        let (name, octets) = LowerName::read(b"\x03Web\x07cluster\x00rest").unwrap();
        assert_eq!((name.wire(), octets), (&b"\x03web\x07cluster\x00"[..], 13));
        assert_eq!((name.start_of(1), name.start_of(2)), (4, 12));
        for none in [&b""[..], b"\x03web", b"\x03we", b"\x03web\xc0\x0c", b"\x40"] {
            assert!(LowerName::read(none).is_none(), "{none:?}");
        }
        let many = |labels: usize| [&b"\x01a".repeat(labels)[..], b"\0"].concat();
        assert_eq!(LowerName::read(&many(127)).map(|(_, octets)| octets), Some(255));
        assert!(LowerName::read(&many(128)).is_none());
        let long = |last: usize| {
            let label = |length: usize| {
                [&[u8::try_from(length).unwrap()], &vec![b'a'; length][..]].concat()
            };
            [label(63), label(63), label(63), label(last), vec![0]].concat()
        };
        assert_eq!(LowerName::read(&long(61)).map(|(_, octets)| octets), Some(255));
        assert!(LowerName::read(&long(62)).is_none());
    }

    #[test]
    fn labels_that_are_none() {
        assert_eq!(wire_labels(&["web", "Default"]).as_deref(), Some(&b"\x03web\x07default"[..]));
        assert_eq!(wire_labels(&[""]), None);
        assert_eq!(wire_labels(&[&"a".repeat(64)]), None);
    }
}
