//! Static tokens from a file (`--token-auth-file`): `token,user,uid,"group1,group2"`, a line each.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::accepted;
use crate::authz::User;

/// Largest file that is read, in bytes.
const FILE_MAX: u64 = 16 << 20;

/// Why a file of tokens can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It can't be read.
    #[error("cannot read --token-auth-file {path}: {reason}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        reason: std::io::Error,
    },
    /// A line is not what it should be.
    #[error("--token-auth-file {path}, line {line}: {what}; a line is token,user,uid[,\"groups\"]")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
}

/// Users by their tokens.
#[derive(Debug, Default)]
pub struct TokenFile(HashMap<String, Arc<User>>);

impl TokenFile {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, TokenFileError> {
        let failed = |reason| TokenFileError::Read { path: path.to_owned(), reason };
        if std::fs::metadata(path).map_err(failed)?.len() > FILE_MAX {
            return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Self::parse(&text).map_err(|(line, what)| TokenFileError::Line {
            path: path.to_owned(),
            line,
            what,
        })
    }

    fn parse(text: &str) -> Result<Self, (usize, &'static str)> {
        let mut users = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fields = fields(line).ok_or((index + 1, "a quote is not closed"))?;
            let [token, name, uid, rest @ ..] = &fields[..] else {
                return Err((index + 1, "there are less than three fields"));
            };
            if token.is_empty() || name.is_empty() {
                return Err((index + 1, "a token and a user name are needed"));
            }
            let groups = rest.first().map(String::as_str).unwrap_or_default().split(',');
            let groups = groups.map(str::trim).filter(|group| !group.is_empty());
            let user = User {
                name: name.clone(),
                uid: uid.clone(),
                groups: groups.map(str::to_owned).collect(),
                ..User::default()
            };
            if users.insert(token.clone(), Arc::new(accepted(user))).is_some() {
                return Err((index + 1, "the token is there twice"));
            }
        }
        Ok(Self(users))
    }

    /// Whose a token is.
    pub fn user(&self, token: &str) -> Option<Arc<User>> {
        self.0.get(token).cloned()
    }
}

/// The fields of a line of comma-separated values; `None` where a quote is not closed.
fn fields(line: &str) -> Option<Vec<String>> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            other => field.push(other),
        }
    }
    fields.push(field);
    (!quoted).then(|| fields.iter().map(|field| field.trim().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_token_user_uid_and_groups() {
        let text =
            "# tokens\nt1,jane,1\n\nt2,\"bob, jr\",2,\"devs,ops\"\nt3,root,3,system:masters\n";
        let file = TokenFile::parse(text).unwrap();
        let groups = |token: &str| file.user(token).unwrap().groups.join(" ");
        assert_eq!(file.user("t1").unwrap().name, "jane");
        assert_eq!(file.user("t2").unwrap().name, "bob, jr");
        assert_eq!(groups("t1"), "system:authenticated");
        assert_eq!(groups("t2"), "devs ops system:authenticated");
        assert_eq!(groups("t3"), "system:masters system:authenticated");
        assert!(file.user("").is_none());
    }

    #[test]
    fn a_broken_line_is_named() {
        for (text, line) in [("a,b", 1), ("a,b,c\n,b,c", 2), ("a,b,c,\"d", 1), ("a,b,c\na,d,e", 2)]
        {
            assert_eq!(TokenFile::parse(text).unwrap_err().0, line, "{text}");
        }
    }
}
