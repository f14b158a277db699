//! What a run of an area gave, and which of its figures were wanted.

use anyhow::Result;

use super::{Area, Figure, interrupt, scale::Point};
use crate::{product::Profile, step::step};

/// What is to be measured, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often contenders take turns.
    pub rounds: u32,
    /// Names of figures, or how they begin; empty: all.
    pub only: Vec<String>,
    /// Which build of the product.
    pub profile: Profile,
}

impl Options {
    /// Whether a figure is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.starts_with(only.as_str()))
    }

    /// Whether any of them is.
    pub fn wants_any<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> bool {
        names.into_iter().any(|name| self.wants(name))
    }
}

/// What a run gave.
#[derive(Debug)]
pub struct Results {
    /// Whose.
    pub area: Area,
    /// The figures.
    pub figures: Vec<Figure>,
    /// Latency of connections over the number of services.
    pub points: Vec<Point>,
    /// What could not be measured, and why.
    pub failures: Vec<String>,
}

impl Results {
    /// Nothing yet.
    pub fn of(area: Area) -> Self {
        Self { area, figures: Vec::new(), points: Vec::new(), failures: Vec::new() }
    }

    /// Takes a group of figures along. That it fails costs no other group anything; an interrupted
    /// run ends.
    pub fn take(
        &mut self,
        group: &str,
        measure: impl FnOnce() -> Result<Vec<Figure>>,
    ) -> Result<()> {
        match step(group, measure) {
            Ok(figures) => {
                let area = self.area;
                self.figures.extend(figures.into_iter().map(|figure| Figure { area, ..figure }));
            }
            Err(error) => {
                interrupt::check()?;
                self.failures.push(format!("{group}: {error:#}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_chosen_by_how_they_begin() {
        let options = |only: &[&str]| Options {
            rounds: 1,
            only: only.iter().map(|&name| name.to_owned()).collect(),
            profile: Profile::Release,
        };
        assert!(options(&[]).wants_any(["socket-rr"]));
        assert!(options(&["socket-"]).wants("socket-rr"));
        assert!(!options(&["socket-rr"]).wants("socket-throughput"));
    }
}
