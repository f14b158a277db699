//! A Corefile as words, each with the place where it stands. Words are what blanks divide; quotes
//! hold blanks together; `#` before a word begins a comment; `{$NAME}` and `{%NAME%}` inside a
//! word are variables of the environment.

use std::sync::Arc;

use super::{CorefileError, Position, Surroundings};

/// How many words a Corefile has at most.
const MAX_WORDS: usize = 100_000;

/// A word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) at: Position,
    /// Whether it stood in quotes: then a brace is no brace.
    pub(super) quoted: bool,
}

impl Word {
    /// Whether it is this brace.
    pub(super) fn is(&self, brace: &str) -> bool {
        !self.quoted && self.text == brace
    }

    /// An error about it.
    pub(super) fn error(&self, why: impl Into<String>) -> CorefileError {
        CorefileError { at: self.at.clone(), why: why.into() }
    }
}

/// The words of `text`.
pub(super) fn words(
    text: &str,
    file: &Arc<str>,
    surroundings: &dyn Surroundings,
) -> Result<Vec<Word>, CorefileError> {
    let mut reader = Reader { rest: text.chars().peekable(), line: 1, column: 1, file };
    let mut words = Vec::new();
    while let Some(mut word) = reader.word()? {
        if words.len() == MAX_WORDS {
            return Err(word.error(format!("there are more than {MAX_WORDS} words")));
        }
        word.text = expanded(&word.text, surroundings);
        words.push(word);
    }
    Ok(words)
}

struct Reader<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
    column: usize,
    file: &'a Arc<str>,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.next()?;
        if next == '\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
        Some(next)
    }

    fn here(&self) -> Position {
        Position { file: Arc::clone(self.file), line: self.line, column: self.column }
    }

    /// The next word, behind blanks and comments.
    fn word(&mut self) -> Result<Option<Word>, CorefileError> {
        loop {
            match self.rest.peek() {
                None => return Ok(None),
                Some('#') => while self.next().is_some_and(|next| next != '\n') {},
                Some(next) if next.is_whitespace() || *next == '\u{feff}' => {
                    self.next();
                }
                Some(_) => break,
            }
        }
        let at = self.here();
        if self.rest.peek() == Some(&'"') {
            self.next();
            return self.quoted(at).map(Some);
        }
        let mut text = String::new();
        while let Some(next) = self.rest.peek().filter(|next| !next.is_whitespace()) {
            text.push(*next);
            self.next();
        }
        Ok(Some(Word { text, at, quoted: false }))
    }

    /// The rest of a word in quotes: all up to the next quote; `\"` is a quote in it.
    fn quoted(&mut self, at: Position) -> Result<Word, CorefileError> {
        let mut text = String::new();
        loop {
            match self.next() {
                None => {
                    let why = "the quote that begins here has no end".to_owned();
                    return Err(CorefileError { at, why });
                }
                Some('"') => return Ok(Word { text, at, quoted: true }),
                Some('\\') if self.rest.peek() == Some(&'"') => {
                    self.next();
                    text.push('"');
                }
                Some(next) => text.push(next),
            }
        }
    }
}

/// `text` with variables of the environment in their places; one that is not set is empty.
fn expanded(text: &str, surroundings: &dyn Surroundings) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("{$").into_iter().chain(rest.find("{%")).min() {
        let end = if rest[start..].starts_with("{$") { "}" } else { "%}" };
        let Some(length) = rest[start + 2..].find(end) else { break };
        expanded.push_str(&rest[..start]);
        let name = &rest[start + 2..start + 2 + length];
        expanded.push_str(&surroundings.variable(name).unwrap_or_default());
        rest = &rest[start + 2 + length + end.len()..];
    }
    expanded + rest
}
