//! Corefiles: CoreDNS's configuration, read as ours.
//!
//! ```text
//! text -> lexer (words, where they stand) -> syntax (blocks and directives)
//!      -> meaning (server blocks, as the agent's own configuration has them too)
//! ```
//! What would make names resolve otherwise than its author meant is an error, with line and
//! column. What can be left out without harm is a warning, and so is what this agent does by
//! itself or elsewhere. Nothing here does I/O: other files come by [`Surroundings`].

mod lexer;
mod meaning;
mod surroundings;
mod syntax;
#[cfg(test)]
mod tests;

use std::{fmt, path::Path, sync::Arc};

pub use self::surroundings::{Machine, Surroundings};
use super::meaning::{Served, ServerBlock};

/// Where something stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The file.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Why a Corefile can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {why}")]
pub struct CorefileError {
    /// Where.
    pub at: Position,
    /// What is wrong, and what would be right.
    pub why: String,
}

/// What a Corefile says that this agent does not do, without harm to any answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where.
    pub at: Position,
    /// What is left out, or done otherwise.
    pub what: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

/// What a Corefile says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Corefile {
    /// Its server blocks.
    pub blocks: Vec<ServerBlock>,
    /// What is left out.
    pub warnings: Vec<Warning>,
}

/// Reads the Corefile at `path`. `served` is what of the agent's own configuration it has to fit.
pub fn read(
    path: &Path,
    served: &Served,
    surroundings: &dyn Surroundings,
) -> Result<Corefile, CorefileError> {
    let file: Arc<str> = path.display().to_string().into();
    let text = surroundings.read(path).map_err(|error| CorefileError {
        at: Position { file: Arc::clone(&file), line: 1, column: 1 },
        why: format!("the file can't be read: {error}"),
    })?;
    let words = lexer::words(&text, &file, surroundings)?;
    let blocks = syntax::blocks(words, surroundings)?;
    let (blocks, warnings) = meaning::of(&blocks, served, surroundings)?;
    Ok(Corefile { blocks, warnings })
}
