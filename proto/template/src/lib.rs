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

use eval::Allowance;
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
        eval::render(&self.nodes, data, own, &Allowance::default())
    }

    /// Renders at the cost of an allowance that others may have a part in.
    fn render_within(&self, data: &Value, allowance: &Allowance) -> Result<String, TemplateError> {
        eval::render(&self.nodes, data, &|_, _| None, allowance)
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
        refused("{{slice .Spec}}", "can't slice map");
        refused("{{slice .N}}", "len of 3");
    }

    /// Managers fill in what anybody writes into a service.
    #[test]
    fn what_a_template_may_do_is_limited() {
        let deep = |open: &str, close: &str, depth| format!("{}x{}", open.repeat(depth), close.repeat(depth));
        let doubled = |rest: &str| format!("{{{{$x := \"0123456789\"}}}}{}{rest}", "{{$x = print $x $x}}".repeat(18));
        let parts = r#"{{$l := split "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" "a"}}"#;
        check(&deep("{{if .Ok}}", "{{end}}", 60), "x");
        check(&format!("{{{{{}.N{}}}}}", "(".repeat(60), ")".repeat(60)), "3");
        check("{{/* \" {{.ID}} ` */}}{{len (printf \"%4096d\" .N)}}", "4096");
        for (template, fragment) in [
            ("{{pad \"\" 9000000000000000000 0}}".to_owned(), "more than 4096"),
            ("{{pad .ID 0 4097}}".to_owned(), "more than 4096"),
            ("{{printf \"%.70000f\" 1.0}}".to_owned(), "more than 4096"),
            ("{{printf \"%99999d\" 1}}".to_owned(), "more than 4096"),
            (deep("{{if .Ok}}", "{{end}}", 100_000), "deep"),
            (deep("{{range .List}}", "{{end}}", 100_000), "deep"),
            (format!("{{{{{}.N", "(".repeat(1_000_000)), "unclosed action"),
            (format!("{{{{{}.N}}}}", "(".repeat(1_000_000)), "deep"),
            ("{{/*\\\"*/}}".repeat(100_000) + "{{", "unclosed action"),
            (format!("{parts}{}", deep("{{range $l}}", "{{end}}", 20)), "too many steps"),
            (doubled("{{split $x \"\"}}"), "more than 65536 parts"),
            (doubled("{{join (split (slice $x 0 9999) \"\") $x}}"), "longer than"),
            (doubled(&"{{$x = print $x $x}}".repeat(30)), "too much text"),
            (doubled(&"{{$x}}".repeat(100)), "too much text"),
            (format!("{}{}", "{{$y := 1}}".repeat(50_000), "{{$}}".repeat(50_000)), "too many steps"),
        ] {
            refused(&template, fragment);
        }
    }

    #[test]
    fn no_text_ends_the_program() {
        const PIECES: &[&str] = &[
            "{{",
            "}}",
            " ",
            "(",
            ")",
            "|",
            ".",
            "$",
            "$x",
            ":=",
            "=",
            ",",
            "-",
            "\"",
            "`",
            "\\",
            "%",
            "/*",
            "*/",
            "é",
            "0",
            "9",
            "4097",
            "1.5",
            "-1",
            "18446744073709551615",
            ".List",
            ".Spec",
            ".Spec.Labels",
            ".Name",
            ".Nil",
            ".Tasks",
            "nil",
            "true",
            "\"a,b\"",
            "\"é%5.3q%-9s%x%f%e%T\"",
            "{{end}}",
            "{{else}}",
            "{{range $x, $y := ",
            "{{if ",
            "{{with ",
            "{{break}}",
            "{{slice ",
            "{{index ",
            "{{printf ",
            "slice ",
            "split ",
            "join ",
            "pad ",
            "truncate ",
            "len ",
            "index ",
            "printf ",
            "print ",
            "json ",
            "title ",
            "eq ",
            "lt ",
            "and ",
            "or ",
            "not ",
            "upper ",
            "{{$x := ",
        ];
        for seed in 1..=20_000_u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut next = |below: usize| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                usize::try_from(state % below as u64).unwrap()
            };
            let mut text = String::from("{{");
            for _ in 0..1 + next(12) {
                text.push_str(PIECES[next(PIECES.len())]);
            }
            text.push_str("}}");
            let rendered = std::panic::catch_unwind(|| Template::parse(&text).and_then(|t| t.render(&data())));
            assert!(rendered.is_ok(), "seed {seed}: {text}");
        }
    }
}
