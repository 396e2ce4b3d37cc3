//! `orch stack config`: the files as one document, every short form written out.

use std::fmt::Write as _;

use clap::Args;
use serde_json::Value;

use super::files::{self, FileArgs};

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    files: FileArgs,
    /// Format output: 'yaml' or 'json'
    #[arg(long, default_value = "yaml", value_parser = ["yaml", "json"])]
    format: String,
    /// Skip interpolation and output only merged config
    #[arg(long)]
    skip_interpolation: bool,
}

pub(super) fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    let (document, warnings) = files::normalised_document(&args.files, args.skip_interpolation)?;
    warnings.iter().for_each(|warning| remark!("{warning}"));
    if args.format == "json" {
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        print!("{}", yaml(&document));
    }
    Ok(())
}

pub(super) fn yaml(document: &Value) -> String {
    let mut out = String::new();
    let Some(object) = document.as_object() else { return out };
    // The version comes first, as in files that people write.
    let first = object.iter().filter(|(key, _)| *key == "version");
    let then = object.iter().filter(|(key, _)| *key == "services");
    let rest = object.iter().filter(|(key, _)| *key != "version" && *key != "services");
    for (key, value) in first.chain(then).chain(rest) {
        entry(&mut out, &scalar_text(key), value, 0);
    }
    out
}

fn entry(out: &mut String, key: &str, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(object) if !object.is_empty() => {
            let _ = writeln!(out, "{indent}{key}:");
            object.iter().for_each(|(key, value)| entry(out, &scalar_text(key), value, depth + 1));
        }
        Value::Array(items) if !items.is_empty() => {
            let _ = writeln!(out, "{indent}{key}:");
            items.iter().for_each(|value| item(out, value, depth + 1));
        }
        other => {
            let _ = writeln!(out, "{indent}{key}: {}", scalar(other));
        }
    }
}

fn item(out: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(object) if !object.is_empty() => {
            let mut inner = String::new();
            object.iter().for_each(|(key, value)| entry(&mut inner, &scalar_text(key), value, depth + 1));
            // The first line of the mapping follows the dash.
            let _ = write!(out, "{indent}- {}", inner.trim_start());
        }
        Value::Array(items) if !items.is_empty() => {
            let _ = writeln!(out, "{indent}-");
            items.iter().for_each(|value| item(out, value, depth + 1));
        }
        other => {
            let _ = writeln!(out, "{indent}- {}", scalar(other));
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => scalar_text(text),
        other => other.to_string(),
    }
}

/// Plain where no reader of YAML could take it for anything else than this text.
fn scalar_text(text: &str) -> String {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_');
    let safe = |c: char| c.is_ascii_alphanumeric() || " _-./=+@$(),%;".contains(c);
    let colons = !text.contains(": ") && !text.ends_with(':');
    let plain = starts && colons && text.chars().all(|c| safe(c) || c == ':') && !text.ends_with(' ');
    let words = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    if plain && !words.contains(&text.to_lowercase().as_str()) {
        text.to_owned()
    } else {
        // JSON's strings are YAML's, too.
        Value::String(text.into()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_read_back_as_they_were() {
        let document = serde_json::json!({
            "version": "3.13",
            "services": {"a": {"ports": [{"target": 80, "mode": "ingress"}], "command": ["a b", "x: y", "", "1", "é\n"],
                "nested": [[1, 2], []], "on": {"yes": null, "n": true}, "ends:": "-1.5", "f": 0.5, "e": {}}},
            "x-a": ["# no comment", "a #b", "*a", "&b", "{c}", "%d", "~", "0x1", "1e3", "2001-01-01", "|", ">-"],
        });
        let text = yaml(&document);
        let read: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(read, document, "{text}");
    }
}
