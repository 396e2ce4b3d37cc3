//! What a Go value says that its JSON does not: fields that `omitempty` leaves out, and durations.
//!
//! Docker's templates read Go's structs, where every field exists; the JSON of the same struct lacks the empty ones.
//! Both are in one [`Value`] here: a field that only templates find has a key that begins with NUL, as no field of JSON
//! does. [`shown`] takes that away; whatever prints a value as JSON goes through it.

use serde_json::{Map, Value};

const HIDDEN: char = '\0';
/// The key of an object that is one value with a text of its own: what templates print, and its JSON.
const TEXT: &str = "\0\0text";
const JSON: &str = "\0\0json";

/// What a field has that nobody set.
#[derive(Debug, Clone, PartialEq)]
pub enum Zero {
    /// A pointer to nothing.
    Pointer,
    List,
    Map,
    /// A text, number or truth value.
    Of(Value),
}

impl Zero {
    /// `None` when the value is not empty. What has only fields that are not shown is a pointer to a struct.
    #[must_use]
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Null => Some(Self::Pointer),
            Value::Bool(flag) => (!flag).then(|| Self::Of(false.into())),
            Value::Number(number) => (number.as_f64() == Some(0.0)).then(|| Self::Of(value.clone())),
            Value::String(text) => text.is_empty().then(|| Self::Of("".into())),
            Value::Array(list) => list.is_empty().then_some(Self::List),
            Value::Object(map) if map.is_empty() => Some(Self::Map),
            Value::Object(map) => match map.get(JSON) {
                Some(json) => Self::of(json).map(|_| Self::Of(value.clone())),
                None => map.keys().all(|key| key.starts_with(HIDDEN)).then_some(Self::Pointer),
            },
        }
    }

    fn value(self) -> Value {
        match self {
            Self::Pointer => printed("<nil>", Value::Null),
            Self::List => printed("[]", Value::Null),
            Self::Map => printed("map[]", Value::Null),
            Self::Of(value) => value,
        }
    }
}

/// A value that templates print as `text`, and that is `json` everywhere else.
#[must_use]
pub fn printed(text: &str, json: Value) -> Value {
    Value::Object([(TEXT.to_owned(), text.into()), (JSON.to_owned(), json)].into_iter().collect())
}

/// Gives `map` a field that only templates find.
pub fn hide(map: &mut Map<String, Value>, name: &str, zero: Zero) {
    map.insert(format!("{HIDDEN}{name}"), zero.value());
}

/// As JSON has it.
#[must_use]
pub fn shown(value: &Value) -> Value {
    match value {
        Value::Array(list) => list.iter().map(shown).collect(),
        Value::Object(map) => match map.get(JSON) {
            Some(json) => json.clone(),
            None => {
                let fields = map.iter().filter(|(name, _)| !name.starts_with(HIDDEN));
                Value::Object(fields.map(|(name, value)| (name.clone(), shown(value))).collect())
            }
        },
        other => other.clone(),
    }
}

/// The text of a value that has one of its own.
pub(super) fn text(value: &Value) -> Option<&str> {
    value.as_object()?.get(TEXT)?.as_str()
}

/// The JSON of a value that has a text of its own, else the value.
pub(super) fn plain(value: &Value) -> &Value {
    value.as_object().and_then(|map| map.get(JSON)).unwrap_or(value)
}

/// A field, shown or not.
pub(super) fn field<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    map.get(name).or_else(|| map.get(&format!("{HIDDEN}{name}")))
}

/// The fields that are shown.
pub(super) fn entries(map: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    map.iter().filter(|(name, _)| !name.starts_with(HIDDEN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Template;
    use serde_json::json;

    fn sample() -> Value {
        let mut inner = Map::new();
        for (name, zero) in [
            ("User", Zero::Of("".into())),
            ("Count", Zero::Of(0.into())),
            ("Tty", Zero::Of(false.into())),
            ("Env", Zero::List),
            ("Labels", Zero::Map),
        ] {
            hide(&mut inner, name, zero);
        }
        inner.insert("Delay".into(), printed("10s", json!(10)));
        let mut root = Map::new();
        root.insert("Spec".into(), inner.into());
        hide(&mut root, "Status", Zero::Pointer);
        root.into()
    }

    #[test]
    fn templates_find_what_json_leaves_out() {
        for (template, want) in [
            ("{{.Status}}|{{.Spec.User}}|{{.Spec.Count}}|{{.Spec.Tty}}", "<nil>||0|false"),
            ("{{.Spec.Env}} {{.Spec.Labels}} {{.Spec.Delay}}", "[] map[] 10s"),
            ("{{with .Status}}{{.State}}{{end}}{{if .Status}}x{{else}}-{{end}}{{with .Spec.Env}}x{{end}}", "-"),
            ("{{with .Spec}}<{{.User}}>{{end}}{{range .Spec.Env}}x{{end}}{{len .Spec.Env}}", "<>0"),
            ("{{range $k, $v := .Spec}}{{$k}}={{$v}};{{end}}{{range .Spec.Labels}}x{{end}}", "Delay=10s;"),
            ("{{json .Status}} {{json .Spec.Env}} {{json .Spec.Labels}} {{json .Spec.User}}", "null null null \"\""),
            ("{{json .Spec}} {{json .}}", r#"{"Delay":10} {"Spec":{"Delay":10}}"#),
            ("{{index .Spec.Labels \"a\"}}|{{.Spec.Labels.a}}|{{join .Spec.Env \",\"}}", "|<no value>|"),
            ("{{eq .Spec.User \"\"}} {{eq .Spec.Delay 10}} {{lt .Spec.Count .Spec.Delay}}", "true true true"),
            ("{{printf \"%s %d %d\" .Spec.Delay .Spec.Delay .Spec.Count}}", "10s 10 0"),
        ] {
            let rendered = Template::parse(template).and_then(|t| t.render(&sample()));
            assert_eq!(rendered.as_deref(), Ok(want), "{template}");
        }
        let refused = |text: &str| Template::parse(text).and_then(|t| t.render(&sample())).unwrap_err().to_string();
        assert!(refused("{{.Status.State}}").contains("nil pointer evaluating .Status.State"));
        assert!(refused("{{index .Spec.Env 0}}").contains("index out of range: 0"));
        assert!(refused("{{index .Status 0}}").contains("can't index <nil>"));
        assert!(refused("{{.Nope}}").ends_with("it has Spec"));
        assert_eq!(shown(&sample()), json!({"Spec": {"Delay": 10}}));
    }

    #[test]
    fn empty_is_told_by_kind() {
        let mut hidden = Map::new();
        hide(&mut hidden, "A", Zero::List);
        for (value, want) in [
            (json!(null), Some(Zero::Pointer)),
            (json!([]), Some(Zero::List)),
            (json!({}), Some(Zero::Map)),
            (Value::Object(hidden), Some(Zero::Pointer)),
            (json!(""), Some(Zero::Of(json!("")))),
            (json!(0), Some(Zero::Of(json!(0)))),
            (printed("0s", json!(0)), Some(Zero::Of(printed("0s", json!(0))))),
            (printed("1s", json!(1)), None),
            (json!({"a": 0}), None),
            (json!([0]), None),
        ] {
            assert_eq!(Zero::of(&value), want, "{value}");
        }
    }
}
