//! `template`: answers made of the question.

use hickory_proto::{op::ResponseCode, rr::Name};

use super::{CorefileError, Directive, Warning, Word, number, record_type, single, unknown, zone};
use crate::dns::chain::{
    template::{Template, Text},
    text::Pattern,
};

/// `template CLASS TYPE [ZONE...] { … }`.
pub(super) fn read(
    directive: &Directive,
    block: &[Name],
) -> Result<(Template, Vec<Warning>), CorefileError> {
    let [class, kind, zones @ ..] = &directive.arguments[..] else {
        return Err(directive.name.error("template names a class and a type, such as IN A"));
    };
    if !["IN", "ANY"].contains(&&*class.text) {
        let why = format!("questions of class {} are refused; use IN or ANY", class.text);
        return Err(class.error(why));
    }
    let mut template = Template {
        zones: if zones.is_empty() { block.to_vec() } else { zone::list(zones)? },
        kind: if kind.text == "ANY" { None } else { Some(record_type(kind)?) },
        ..Template::default()
    };
    let mut warnings = Vec::new();
    let mut texts = Vec::new();
    for line in &directive.body {
        match &*line.name.text {
            "match" => {
                for word in some(line)? {
                    let pattern = Pattern::new(&word.text).map_err(|why| word.error(why))?;
                    template.patterns.push(pattern);
                }
            }
            "answer" => template.answers.extend(read_texts(line, &mut texts)?),
            "additional" => template.additionals.extend(read_texts(line, &mut texts)?),
            "authority" => template.authorities.extend(read_texts(line, &mut texts)?),
            "rcode" => template.code = code(single(line)?)?,
            "ederror" => {
                let [first, reason @ ..] = some(line)? else { continue };
                let code = u16::try_from(number(first, 0, 49_151)?).unwrap_or_default();
                template.explanation = Some(code);
                if let Some(word) = reason.first() {
                    let what = "ederror: the code is said and the reason is left out".to_owned();
                    warnings.push(Warning { at: word.at.clone(), what });
                }
            }
            "fallthrough" if line.arguments.is_empty() => template.fallthrough = vec![Name::root()],
            "fallthrough" => template.fallthrough = zone::list(&line.arguments)?,
            // Answers are followed to where they lead in any case.
            "upstream" => {}
            _ => return Err(unknown(line, directive)),
        }
    }
    // The patterns may stand behind the texts that speak of their groups.
    for (word, text) in texts {
        template.check(&text).map_err(|why| word.error(why))?;
    }
    Ok((template, warnings))
}

/// The arguments, of which there is one at least.
fn some(line: &Directive) -> Result<&[Word], CorefileError> {
    if line.arguments.is_empty() {
        return Err(line.name.error(format!("{:?} has an argument", line.name.text)));
    }
    Ok(&line.arguments)
}

fn read_texts<'a>(
    line: &'a Directive,
    all: &mut Vec<(&'a Word, Text)>,
) -> Result<Vec<Text>, CorefileError> {
    let mut texts = Vec::new();
    for word in some(line)? {
        let text = Text::new(&word.text).map_err(|why| word.error(why))?;
        all.push((word, text.clone()));
        texts.push(text);
    }
    Ok(texts)
}

fn code(word: &Word) -> Result<ResponseCode, CorefileError> {
    crate::dns::chain::template::code_named(&word.text).ok_or_else(|| {
        let why = format!("{:?} is no response code such as NXDOMAIN or REFUSED", word.text);
        word.error(why)
    })
}
