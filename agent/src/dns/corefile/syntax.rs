//! Words as server blocks with directives in them. `import` is done here: the words of the files
//! or the snippet that it names take its place.

use std::{cell::Cell, collections::HashMap, path::Path, sync::Arc};

use super::{
    CorefileError, Surroundings,
    lexer::{self, Word},
};

/// How deep imports and braces go.
const MAX_DEPTH: usize = 8;
/// How many lines there may be, with those that are imported.
const MAX_LINES: usize = 100_000;

/// A server block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// The zones that it is for, with ports.
    pub(super) keys: Vec<Word>,
    pub(super) directives: Vec<Directive>,
}

/// A line, and the lines in the braces at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directive {
    pub(super) name: Word,
    pub(super) arguments: Vec<Word>,
    pub(super) body: Vec<Directive>,
}

impl Directive {
    /// How many lines it is.
    fn lines(&self) -> usize {
        self.body.iter().map(Self::lines).sum::<usize>() + 1
    }
}

/// The server blocks that `words` are.
pub(super) fn blocks(
    words: Vec<Word>,
    surroundings: &dyn Surroundings,
) -> Result<Vec<Block>, CorefileError> {
    let (snippets, blocks) = (HashMap::new(), Vec::new());
    let mut parser = Parser { surroundings, snippets, blocks, lines: Cell::new(0) };
    parser.file(words, 0)?;
    Ok(parser.blocks)
}

struct Parser<'a> {
    surroundings: &'a dyn Surroundings,
    /// `(name) { … }`, for `import name`.
    snippets: HashMap<String, Vec<Directive>>,
    blocks: Vec<Block>,
    /// How many lines there are, each counted as often as it stands somewhere.
    lines: Cell<usize>,
}

/// Words that are still to be read.
type Words = std::iter::Peekable<std::vec::IntoIter<Word>>;

impl Parser<'_> {
    fn file(&mut self, words: Vec<Word>, depth: usize) -> Result<(), CorefileError> {
        let mut words = words.into_iter().peekable();
        while let Some(first) = words.next() {
            if first.text == "import" && !first.quoted {
                let (arguments, brace) = line(&first, &mut words);
                if let Some(brace) = brace {
                    return Err(brace.error("import has no block"));
                }
                for file in self.imported(&first, &arguments, depth)? {
                    self.file(file, depth + 1)?;
                }
                continue;
            }
            self.block(&first, &mut words, depth)?;
        }
        Ok(())
    }

    fn block(
        &mut self,
        first: &Word,
        words: &mut Words,
        depth: usize,
    ) -> Result<(), CorefileError> {
        let mut keys = Vec::new();
        let mut next = Some(first.clone());
        loop {
            match next {
                None => return Err(first.error("the server block has no opening brace")),
                Some(word) if word.is("}") => return Err(word.error("nothing is open here")),
                Some(word) if word.is("{") => break,
                Some(word) => keys.push(word),
            }
            next = words.next();
        }
        if keys.is_empty() {
            return Err(first.error("the server block has no zone; `.` is all names"));
        }
        let directives = self.body(first, words, depth)?;
        let snippet = keys[0].text.strip_prefix('(').and_then(|name| name.strip_suffix(')'));
        match snippet {
            Some(name) if keys.len() == 1 => {
                self.snippets.insert(name.to_owned(), directives);
            }
            _ => self.blocks.push(Block { keys, directives }),
        }
        Ok(())
    }

    /// The lines up to the closing brace.
    fn body(
        &self,
        opener: &Word,
        words: &mut Words,
        depth: usize,
    ) -> Result<Vec<Directive>, CorefileError> {
        if depth == MAX_DEPTH {
            return Err(opener.error(format!("more than {MAX_DEPTH} levels of braces and imports")));
        }
        let mut lines = Vec::new();
        loop {
            let Some(name) = words.next() else {
                return Err(opener.error("the block that begins here has no closing brace"));
            };
            if name.is("}") {
                return Ok(lines);
            }
            if name.is("{") {
                return Err(name.error("a brace stands behind what it belongs to"));
            }
            let (arguments, brace) = line(&name, words);
            if name.text == "import" && !name.quoted && brace.is_none() {
                lines.extend(self.imported_lines(&name, &arguments, depth)?);
                continue;
            }
            let body = match brace {
                Some(brace) => self.body(&brace, words, depth + 1)?,
                None => Vec::new(),
            };
            self.count(1, &name)?;
            lines.push(Directive { name, arguments, body });
        }
    }

    /// Counts so many lines more, which stand at `word`.
    fn count(&self, lines: usize, word: &Word) -> Result<(), CorefileError> {
        self.lines.set(self.lines.get().saturating_add(lines));
        if self.lines.get() > MAX_LINES {
            return Err(
                word.error(format!("with what is imported there are more than {MAX_LINES} lines"))
            );
        }
        Ok(())
    }

    fn imported_lines(
        &self,
        import: &Word,
        arguments: &[Word],
        depth: usize,
    ) -> Result<Vec<Directive>, CorefileError> {
        if let [name, ..] = arguments
            && let Some(snippet) = self.snippets.get(&name.text)
        {
            // One that imports another twice, which does the same, would not end.
            self.count(snippet.iter().map(Directive::lines).sum(), import)?;
            return Ok(snippet.clone());
        }
        let mut lines = Vec::new();
        for mut file in self.imported(import, arguments, depth)? {
            // As if it stood here: the end of the file closes it.
            let end =
                Word { text: "}".into(), quoted: false, ..file.last().unwrap_or(import).clone() };
            file.push(end);
            let mut words = file.into_iter().peekable();
            lines.extend(self.body(import, &mut words, depth + 1)?);
            if let Some(word) = words.next() {
                return Err(word.error("nothing is open here"));
            }
        }
        Ok(lines)
    }

    /// The words of each file that an import names; none is no error where it is a pattern.
    fn imported(
        &self,
        import: &Word,
        arguments: &[Word],
        depth: usize,
    ) -> Result<Vec<Vec<Word>>, CorefileError> {
        let [pattern] = arguments else {
            return Err(import.error("import names one file, pattern or snippet"));
        };
        if depth >= MAX_DEPTH {
            return Err(import.error(format!("more than {MAX_DEPTH} levels of braces and imports")));
        }
        // A relative path begins where the file is.
        let folder = Path::new(&*import.at.file).parent().unwrap_or(Path::new(""));
        let paths = self.surroundings.matching(&folder.join(&pattern.text));
        if paths.is_empty() && !pattern.text.contains('*') {
            let why = format!("there is no file and no snippet {:?}", pattern.text);
            return Err(pattern.error(why));
        }
        let mut files = Vec::new();
        for path in paths {
            self.count(1, import)?;
            let text = self.surroundings.read(&path).map_err(|error| {
                pattern.error(format!("{} can't be read: {error}", path.display()))
            })?;
            let name: Arc<str> = path.display().to_string().into();
            files.push(lexer::words(&text, &name, self.surroundings)?);
        }
        Ok(files)
    }
}

/// The rest of the line of `first`: its words, and the brace at its end.
fn line(first: &Word, words: &mut Words) -> (Vec<Word>, Option<Word>) {
    let mut arguments = Vec::new();
    let mut last = first.at.line;
    // A word in quotes may go over several lines; what follows its end is still of this one.
    let same = |word: &Word, last: usize| word.at.line == last && word.at.file == first.at.file;
    while let Some(word) = words.next_if(|word| same(word, last) && !word.is("}")) {
        if word.is("{") {
            return (arguments, Some(word));
        }
        last += word.text.matches('\n').count();
        arguments.push(word);
    }
    (arguments, None)
}
