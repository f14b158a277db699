//! Helm's templates, as far as the chart has them: lines between `{{- if … }}` and `{{- end }}`,
//! `{{- fail … }}`, and expressions of a few functions, which mean what they mean to Helm.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// A template with its words replaced, for a chart that is installed in this namespace.
pub(super) fn render(template: &str, values: &Value, namespace: &str) -> Result<String> {
    let root = &json!({"Values": values, "Release": {"Namespace": namespace}});
    let mut rendered = String::new();
    let mut shown = vec![true];
    for line in template.lines() {
        if let Some(condition) = word(line, "if ") {
            // What is not shown need not make sense.
            let all = shown.iter().all(|shown| *shown);
            shown.push(all && is_true(&evaluate(condition, root)?));
        } else if word(line, "end") == Some("") {
            shown.pop();
        } else if shown.iter().all(|shown| *shown) {
            match word(line, "fail ") {
                Some(why) => bail!("{}", evaluate(why, root)?.as_str().unwrap_or_default()),
                None => rendered += &render_line(line, root)?,
            }
            rendered.push('\n');
        }
    }
    ensure!(shown.len() == 1, "an if has no end");
    Ok(rendered)
}

/// What follows a word that has a line for itself.
fn word<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    line.trim().strip_prefix("{{- ")?.strip_suffix("}}")?.strip_prefix(word).map(str::trim)
}

fn render_line(line: &str, root: &Value) -> Result<String> {
    let (mut rendered, mut rest) = (String::new(), line);
    while let Some((before, behind)) = rest.split_once("{{ ") {
        let (expression, after) = behind.split_once(" }}").context("a word has no end")?;
        let value = evaluate(expression, root)?;
        let text = value.as_str().with_context(|| format!("{expression} is no text"))?;
        rendered.extend([before, text]);
        rest = after;
    }
    Ok(rendered + rest)
}

/// As Go's templates have it: nothing, and what is empty, is not.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(value) => value.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// The value of an expression.
fn evaluate(expression: &str, root: &Value) -> Result<Value> {
    let tokens = tokens(expression)?;
    let mut rest = &tokens[..];
    let value = pipeline(&mut rest, root)?;
    ensure!(rest.is_empty(), "{expression} goes on after its end");
    Ok(value)
}

/// Words, texts in quotes, and signs.
fn tokens(expression: &str) -> Result<Vec<String>> {
    let mut tokens = Vec::new();
    let mut rest = expression.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '(' | ')' | '|' => 1,
            '"' => rest[1..].find('"').context("a text has no end")? + 2,
            _ => rest.find([' ', '(', ')', '|']).unwrap_or(rest.len()),
        };
        let (token, after) = rest.split_at(length);
        tokens.push(token.to_owned());
        rest = after.trim_start();
    }
    Ok(tokens)
}

/// Calls, each with what the one before gave as its last argument.
fn pipeline(rest: &mut &[String], root: &Value) -> Result<Value> {
    let mut value = call(rest, None, root)?;
    while let Some(("|", behind)) = split(rest) {
        *rest = behind;
        value = call(rest, Some(value), root)?;
    }
    Ok(value)
}

fn split(tokens: &[String]) -> Option<(&str, &[String])> {
    tokens.split_first().map(|(first, rest)| (first.as_str(), rest))
}

fn call(rest: &mut &[String], piped: Option<Value>, root: &Value) -> Result<Value> {
    let (first, _) = split(rest).context("an expression is empty")?;
    if first.starts_with(['.', '"', '(']) {
        return operand(rest, root);
    }
    let function = first.to_owned();
    *rest = &rest[1..];
    let mut arguments = Vec::new();
    while let Some((next, _)) = split(rest)
        && next != "|"
        && next != ")"
    {
        arguments.push(operand(rest, root)?);
    }
    arguments.extend(piped);
    apply(&function, &arguments)
}

fn operand(rest: &mut &[String], root: &Value) -> Result<Value> {
    let (first, behind) = split(rest).context("an argument is missing")?;
    let first = first.to_owned();
    *rest = behind;
    if first == "(" {
        let value = pipeline(rest, root)?;
        let Some((")", behind)) = split(rest) else { bail!("a parenthesis has no end") };
        *rest = behind;
        return Ok(value);
    }
    match first.strip_prefix('"') {
        Some(text) => Ok(text.trim_end_matches('"').into()),
        None => lookup(&first, root),
    }
}

fn apply(function: &str, arguments: &[Value]) -> Result<Value> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(match (function, arguments) {
        ("toJson", [value]) => value.to_string().into(),
        // Only that another configuration gives another text.
        ("sha256sum", [value]) => value.clone(),
        ("default", [other, value]) => if is_true(value) { value } else { other }.clone(),
        ("not", [value]) => (!is_true(value)).into(),
        ("and", [.., last]) => {
            arguments.iter().find(|value| !is_true(value)).unwrap_or(last).clone()
        }
        ("or", [.., last]) => arguments.iter().find(|value| is_true(value)).unwrap_or(last).clone(),
        ("ne", [one, other]) => (one != other).into(),
        ("printf", [format, value]) => text(format).replace("%s", &text(value)).into(),
        ("hasPrefix", [prefix, value]) => text(value).starts_with(&text(prefix)).into(),
        _ => bail!("{function} of {} arguments is unknown here", arguments.len()),
    })
}

/// What a path leads to. A field of the agent's configuration may be missing, a value may not.
fn lookup(path: &str, root: &Value) -> Result<Value> {
    if path == ".Release.Namespace" {
        return Ok(root["Release"]["Namespace"].clone());
    }
    let of_values = path.strip_prefix(".Values.").with_context(|| format!("{path} is unknown"))?;
    match root["Values"].pointer(&format!("/{}", of_values.replace('.', "/"))) {
        Some(value) => Ok(value.clone()),
        None if of_values.starts_with("config.") => Ok(Value::Null),
        None => bail!("values.yaml has no {of_values}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(template: &str) -> String {
        let values = json!({
            "a": "x", "no": false, "list": [], "config": {"services": true, "dir": "/run/x"},
        });
        render(template, &values, "kube-system").unwrap_or_else(|error| format!("{error:#}"))
    }

    #[test]
    fn what_helm_would_say_is_said() {
        for (template, expected) in [
            ("a: {{ .Values.a | toJson }}", "a: \"x\"\n"),
            ("{{ .Values.config.dir | default \"/run/y\" | toJson }}", "\"/run/x\"\n"),
            ("{{ .Values.config.other | default \"/run/y\" }}!", "/run/y!\n"),
            ("{{ toJson (and .Values.a .Values.list) }}", "[]\n"),
            ("{{ toJson (or .Values.no .Values.a) }}", "\"x\"\n"),
            ("{{- if .Values.no }}\na\n{{- end }}\nb", "b\n"),
            ("{{- if not .Values.no }}\na\n{{- end }}", "a\n"),
            (
                "{{- if hasPrefix \"/run/\" (.Values.config.dir | default \"/\") }}\na\n{{- end }}",
                "a\n",
            ),
            ("{{ .Release.Namespace }}", "kube-system\n"),
            ("{{- if ne .Release.Namespace \"kube-system\" }}\na\n{{- end }}", ""),
            ("{{- if ne .Release.Namespace \"other\" }}\na\n{{- end }}", "a\n"),
            ("{{- if .Values.a }}\n{{- fail \"told so\" }}\n{{- end }}", "told so"),
            ("{{- if .Values.no }}\n{{- fail \"told so\" }}\n{{- end }}", ""),
        ] {
            assert_eq!(of(template), expected, "{template}");
        }
    }

    #[test]
    fn what_is_unknown_is_an_error() {
        for (template, expected) in [
            ("{{ .Values.b }}", "values.yaml has no b"),
            ("{{ .Files }}", ".Files is unknown"),
            ("{{ .Values.a | upper }}", "upper of 1 arguments is unknown here"),
            ("{{- if .Values.a }}\na", "an if has no end"),
            ("{{ .Values.list }}", ".Values.list is no text"),
        ] {
            assert_eq!(of(template), expected, "{template}");
        }
    }
}
