//! Go templates over JSON values, as Docker's `--format` takes them, and the placeholders of services.
//!
//! The part of `text/template` that people write in format strings: fields, variables, pipelines, `if`, `range`, `with`
//! and the functions that Docker adds (`json`, `join`, `table` is handled by the caller). Values are JSON with Docker's
//! field names. This module must not know what the values mean and does no I/O.

mod eval;
pub mod files;
mod functions;
mod lexer;
pub mod native;
mod parser;
pub mod placeholders;

use serde_json::Value;

/// What is wrong with a template, or why it does not fit the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template parsing error: {0}")]
pub struct TemplateError(pub String);

/// Functions that the caller of a template brings.
pub type OwnFunctions<'a> = &'a dyn Fn(&str, &[Value]) -> Option<Result<Value, TemplateError>>;

/// A parsed template.
#[derive(Debug, Clone)]
pub struct Template {
    nodes: Vec<parser::Node>,
}

impl Template {
    /// # Errors
    /// When the text is not a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Ok(Self { nodes: parser::parse(lexer::lex(text)?)? })
    }

    /// # Errors
    /// When the template does not fit the value.
    pub fn render(&self, data: &Value) -> Result<String, TemplateError> {
        self.render_with(data, &|_, _| None)
    }

    /// Renders with functions besides Docker's; `None` is a name that the caller does not know either.
    ///
    /// # Errors
    /// As [`Self::render`], and what the functions say.
    pub fn render_with(&self, data: &Value, own: OwnFunctions<'_>) -> Result<String, TemplateError> {
        eval::render(&self.nodes, data, own)
    }

    /// The paths (`.Node.Hostname` is `["Node", "Hostname"]`) that the template reads from the dot.
    #[must_use]
    pub fn paths(&self) -> Vec<&[String]> {
        let mut found = Vec::new();
        parser::paths(&self.nodes, &mut found);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn data() -> Value {
        json!({
            "ID": "abc", "Name": "web", "N": 3, "Ok": true, "Nil": null, "Empty": [],
            "List": ["a", "b"], "Spec": {"Labels": {"k": "v", "a": "x"}, "Count": 2},
            "Tasks": [{"Name": "web.1"}, {"Name": "web.2"}],
        })
    }

    fn check(template: &str, expected: &str) {
        let rendered = Template::parse(template).and_then(|t| t.render(&data()));
        assert_eq!(rendered.as_deref(), Ok(expected), "{template}");
    }

    fn refused(template: &str, fragment: &str) {
        match Template::parse(template).and_then(|t| t.render(&data())) {
            Ok(text) => panic!("{template} gave {text:?}"),
            Err(error) => assert!(error.to_string().contains(fragment), "{template}: {error}"),
        }
    }

    #[test]
    fn what_people_write_in_format_strings() {
        check("plain", "plain");
        check("{{.ID}}: {{.Name}}", "abc: web");
        check("{{ .Spec.Labels.k }}|{{.Spec.Labels.none}}", "v|<no value>");
        check("{{.Spec.Labels}} {{.List}} {{.Nil}}", "map[a:x k:v] [a b] <no value>");
        check("{{json .List}} {{json .Spec}}", r#"["a","b"] {"Labels":{"k":"v","a":"x"},"Count":2}"#);
        check("{{join .List \", \"}}", "a, b");
        check("{{index .List 1}} {{index .Spec.Labels \"k\"}} {{index .Spec \"Labels\" \"a\"}}", "b v x");
        check("{{(index .Tasks 0).Name}}", "web.1");
        check("{{.Spec.Labels \"k\"}}|{{.Spec.Labels \"none\"}}", "v|");
        check("{{range .Tasks}}{{.Name}};{{end}}", "web.1;web.2;");
        check("{{range $i, $t := .List}}{{$i}}={{$t}} {{end}}", "0=a 1=b ");
        check("{{range $k, $v := .Spec.Labels}}{{$k}}:{{$v}} {{end}}", "a:x k:v ");
        check("{{range .Empty}}x{{else}}none{{end}}", "none");
        check("{{if .Ok}}yes{{else}}no{{end}}{{if .Nil}}x{{else if eq .N 3}}three{{end}}", "yesthree");
        check("{{with .Spec}}{{.Count}}{{$.ID}}{{end}}{{with .Nil}}x{{else}}-{{end}}", "2abc-");
        check(
            "{{printf \"%s-%05d %q %v %.1f|%-5s|\" .Name .N .ID .Ok 1.25 \"x\"}}",
            "web-00003 \"abc\" true 1.2|x    |",
        );
        check("{{.Name | upper | printf \"<%s>\"}} {{lower \"ABC\"}} {{title .Name}}", "<WEB> abc Web");
        check("{{len .List}} {{len .Name}} {{not .Ok}} {{and .Ok .N}} {{or .Nil .Name}}", "2 3 false 3 web");
        check("{{eq .N 1 2 3}} {{ne .Name \"x\"}} {{lt 1 2}} {{ge .N 3}}", "true true true true");
        check("{{$x := .Name}}{{$x}}{{$x = \"y\"}}{{$x}}", "weby");
        check("a  {{- .ID -}}  b {{/* comment */}}c", "aabcb c");
        check("{{println .ID .N}}{{print \"a\" 1 2 \"b\"}}", "abc 3\na1 2b");
        check("{{split \"a,b\" \",\"}} {{truncate .Name 2}} {{pad .Name 1 2}}|", "[a b] we  web  |");
        check("{{range .List}}{{if eq . \"b\"}}{{break}}{{end}}{{.}}{{end}}", "a");
        check("{{slice .Name 1}} {{`raw`}}\t{{true}}", "eb raw\ttrue");
    }

    #[test]
    fn mistakes_say_where() {
        refused("{{.ID", "unclosed action");
        refused("{{if .ID}}x", "unexpected EOF");
        refused("{{nope .ID}}", "function \"nope\" not defined");
        refused("{{.Nope}}", "map has no entry for key \"Nope\"");
        refused("{{end}}", "unexpected {{end}}");
        refused("{{index .List 9}}", "out of range");
        refused("{{$y}}", "undefined variable \"$y\"");
        refused("{{.Name.Deep}}", "can't evaluate field Deep");
        refused("{{\"a}}", "unterminated");
    }
}
