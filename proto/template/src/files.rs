//! Secrets and configs whose content is a template: what placeholders can name, and the functions `secret`, `config`
//! and `env`, which give what the task's other files and its environment hold.

use serde_json::Value;

use crate::{
    Template, TemplateError,
    placeholders::{check_path, example},
};

/// What the functions look in.
pub struct Sources<'a> {
    /// The content of the secret that the task has at this target.
    pub secret: &'a dyn Fn(&str) -> Option<Vec<u8>>,
    /// The same of a config.
    pub config: &'a dyn Fn(&str) -> Option<Vec<u8>>,
    /// `NAME=value` of the service.
    pub env: &'a [String],
}

/// The content for one task. `values` are those of [`crate::placeholders::values`].
///
/// # Errors
/// With what cannot be filled in, and why.
pub fn fill(text: &str, values: &Value, sources: &Sources<'_>) -> Result<String, TemplateError> {
    let own = |name: &str, arguments: &[Value]| match name {
        "secret" => Some(content(name, arguments, sources.secret)),
        "config" => Some(content(name, arguments, sources.config)),
        "env" => Some(only(name, arguments).map(|wanted| variable(sources.env, wanted).into())),
        _ => None,
    };
    Template::parse(text)?.render_with(values, &own)
}

/// Whether a text is a template that [`fill`] can fill in, as far as can be said without a task.
///
/// # Errors
/// With the first thing that is not known.
pub fn check(text: &str) -> Result<(), TemplateError> {
    let template = Template::parse(text)?;
    for path in template.paths() {
        check_path(path).map_err(TemplateError)?;
    }
    let own = |name: &str, arguments: &[Value]| match name {
        "secret" | "config" | "env" => Some(only(name, arguments).map(|_| Value::String(String::new()))),
        _ => None,
    };
    template.render_with(&example(), &own).map(drop)
}

fn content(
    function: &str,
    arguments: &[Value],
    find: &dyn Fn(&str) -> Option<Vec<u8>>,
) -> Result<Value, TemplateError> {
    let wanted = only(function, arguments)?;
    let missing = || TemplateError(format!("the service has no {function} with the target {wanted:?}"));
    let data = find(wanted).ok_or_else(missing)?;
    let text = String::from_utf8(data).map_err(|_| TemplateError(format!("{function} {wanted:?} is not text")))?;
    Ok(Value::String(text))
}

fn only<'a>(function: &str, arguments: &'a [Value]) -> Result<&'a str, TemplateError> {
    match arguments {
        [Value::String(text)] => Ok(text),
        _ => Err(TemplateError(format!("{function} takes one text, such as {{{{{function} \"name\"}}}}"))),
    }
}

/// Empty when the service does not set it.
fn variable<'a>(env: &'a [String], wanted: &str) -> &'a str {
    let value = |line: &'a String| line.split_once('=').filter(|(name, _)| *name == wanted).map(|(_, value)| value);
    env.iter().find_map(value).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> Result<String, String> {
        let secret = |name: &str| match name {
            "password" => Some(b"hush".to_vec()),
            "binary" => Some(vec![0xff]),
            _ => None,
        };
        let config = |name: &str| (name == "/site").then(|| b"shop".to_vec());
        let env = ["MODE=prod=1".to_owned(), "EMPTY=".to_owned()];
        let sources = Sources { secret: &secret, config: &config, env: &env };
        fill(text, &example(), &sources).map_err(|error| error.to_string())
    }

    #[test]
    fn files_hold_what_the_task_has() {
        for (text, expected) in [
            ("plain", "plain"),
            ("pass={{secret \"password\"}};", "pass=hush;"),
            ("{{config \"/site\"}} {{env \"MODE\"}}|{{env \"EMPTY\"}}|{{env \"NONE\"}}", "shop prod=1||"),
            ("{{.Service.Name}} {{.Task.Slot}} {{.Node.Platform.OS}}", "x 1 linux"),
            ("{{if eq (env \"MODE\") \"prod=1\"}}{{secret \"password\" | upper}}{{end}}", "HUSH"),
        ] {
            assert_eq!(filled(text).as_deref(), Ok(expected), "{text}");
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (text, words) in [
            ("{{secret \"none\"}}", "the service has no secret with the target \"none\""),
            ("{{secret \"binary\"}}", "secret \"binary\" is not text"),
            ("{{config}}", "config takes one text"),
        ] {
            assert!(filled(text).expect_err(text).contains(words), "{text}");
        }
        for (text, words) in [
            ("{{.Task.Slots}}", ".Task has no Slots"),
            ("{{secret}}", "secret takes one text"),
            ("{{frobnicate 1}}", "function \"frobnicate\" not defined"),
            ("{{if}}", "template parsing error"),
        ] {
            assert!(check(text).expect_err(text).to_string().contains(words), "{text}");
        }
    }
}
