//! What templates can call, and how Go prints values.

use serde_json::Value;

use super::{TemplateError, native};

type Outcome = Result<Value, TemplateError>;

/// Of what one call makes from little: the parts of a `split`, the text of a `join` or `printf`.
const MAX_PARTS: usize = 65_536;
const MAX_TEXT_BYTES: usize = 16 << 20;
/// Of a pad, and of a width or precision in `printf`.
const MAX_WIDTH: usize = 4096;

/// Go's `%v`.
pub(super) fn display(value: &Value) -> String {
    if let Some(text) = native::text(value) {
        return text.to_owned();
    }
    match value {
        Value::Null => "<no value>".into(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(display).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut entries: Vec<_> = native::entries(map).map(|(k, v)| format!("{k}:{}", display(v))).collect();
            entries.sort();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}

/// What `if` takes for true.
pub(super) fn truth(value: &Value) -> bool {
    match native::plain(value) {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

pub(super) fn call(name: &str, arguments: Vec<Value>) -> Outcome {
    let text = |at: usize| arguments.get(at).map(display).unwrap_or_default();
    let need = |count: usize| {
        if arguments.len() < count {
            Err(TemplateError(format!("wrong number of args for {name}: want {count} got {}", arguments.len())))
        } else {
            Ok(())
        }
    };
    match name {
        "json" => {
            need(1)?;
            Ok(Value::String(native::shown(&arguments[0]).to_string()))
        }
        "join" => {
            need(2)?;
            let parts = list(&arguments[0]).iter().map(display).collect::<Vec<_>>();
            let separator = text(1);
            let bytes = parts.iter().map(|part| part.len() + separator.len()).sum();
            check_text(name, bytes)?;
            Ok(parts.join(&separator).into())
        }
        "split" => {
            need(2)?;
            let parts: Vec<Value> = text(0).split(&text(1)).take(MAX_PARTS + 1).map(Value::from).collect();
            if parts.len() > MAX_PARTS {
                return Err(TemplateError(format!("error calling split: more than {MAX_PARTS} parts")));
            }
            Ok(Value::Array(parts))
        }
        "upper" => Ok(text(0).to_uppercase().into()),
        "lower" => Ok(text(0).to_lowercase().into()),
        "title" => Ok(title(&text(0)).into()),
        "truncate" => {
            need(2)?;
            Ok(text(0).chars().take(whole(&arguments[1])?).collect::<String>().into())
        }
        "pad" => {
            need(3)?;
            let (before, after) = (whole(&arguments[1])?, whole(&arguments[2])?);
            check_width(name, before.max(after))?;
            Ok(format!("{}{}{}", " ".repeat(before), text(0), " ".repeat(after)).into())
        }
        "print" => Ok(print(&arguments).into()),
        "println" => {
            let parts = arguments.iter().map(display).collect::<Vec<_>>();
            Ok(format!("{}\n", parts.join(" ")).into())
        }
        "printf" => {
            need(1)?;
            printf(&text(0), &arguments[1..]).map(Value::from)
        }
        "len" => {
            need(1)?;
            Ok(length(&arguments[0])?.into())
        }
        "index" => {
            need(1)?;
            arguments[1..].iter().try_fold(arguments[0].clone(), |value, key| index(&value, key))
        }
        "slice" => slice(&arguments),
        "not" => {
            need(1)?;
            Ok((!truth(&arguments[0])).into())
        }
        // Evaluation stops at the argument that decides; here none did, so the last one is the answer.
        "and" | "or" => {
            need(1)?;
            Ok(arguments.into_iter().next_back().unwrap_or(Value::Null))
        }
        "eq" => {
            need(2)?;
            Ok(arguments[1..].iter().any(|other| equal(&arguments[0], other)).into())
        }
        "ne" | "lt" | "le" | "gt" | "ge" => {
            need(2)?;
            compare(name, &arguments[0], &arguments[1])
        }
        _ => Err(TemplateError(format!("function {name:?} not defined"))),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn check_text(function: &str, bytes: usize) -> Result<(), TemplateError> {
    if bytes <= MAX_TEXT_BYTES {
        return Ok(());
    }
    Err(TemplateError(format!("error calling {function}: the text would be longer than {MAX_TEXT_BYTES} bytes")))
}

fn check_width(function: &str, width: usize) -> Result<(), TemplateError> {
    if width <= MAX_WIDTH {
        return Ok(());
    }
    Err(TemplateError(format!("error calling {function}: {width} is more than {MAX_WIDTH}")))
}

fn title(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

fn whole(value: &Value) -> Result<usize, TemplateError> {
    let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
    number.ok_or_else(|| TemplateError(format!("expected a whole number; found {}", display(value))))
}

fn length(value: &Value) -> Result<usize, TemplateError> {
    match native::plain(value) {
        Value::String(text) => Ok(text.len()),
        Value::Array(list) => Ok(list.len()),
        Value::Object(map) => Ok(native::entries(map).count()),
        Value::Null => Ok(0),
        other => Err(TemplateError(format!("len of {}", display(other)))),
    }
}

fn index(value: &Value, key: &Value) -> Outcome {
    match native::text(value) {
        // Without entries, of texts as Docker's maps are.
        Some("map[]") => return Ok("".into()),
        Some("[]") => return index(&Value::Array(Vec::new()), key),
        Some(text) => return Err(TemplateError(format!("error calling index: can't index {text}"))),
        None => {}
    }
    match value {
        Value::Array(list) => {
            let at = whole(key)?;
            let item = list.get(at);
            item.cloned().ok_or_else(|| TemplateError(format!("error calling index: index out of range: {at}")))
        }
        Value::Object(map) => Ok(native::field(map, &display(key)).cloned().unwrap_or(Value::Null)),
        Value::Null => Err(TemplateError("error calling index: index of untyped nil".into())),
        other => Err(TemplateError(format!("error calling index: can't index {}", display(other)))),
    }
}

fn slice(arguments: &[Value]) -> Outcome {
    let Some(value) = arguments.first() else {
        return Err(TemplateError("wrong number of args for slice: want at least 1 got 0".into()));
    };
    let total = length(value)?;
    let from = arguments.get(1).map_or(Ok(0), whole)?;
    let to = arguments.get(2).map_or(Ok(total), whole)?;
    if from > to || to > total {
        return Err(TemplateError(format!("error calling slice: index out of range: {from}:{to}")));
    }
    match native::plain(value) {
        Value::String(text) => {
            let part = text.get(from..to);
            part.map(Value::from).ok_or_else(|| TemplateError("error calling slice: cuts a character".into()))
        }
        Value::Array(list) => Ok(Value::Array(list[from..to].to_vec())),
        Value::Null if native::text(value) == Some("[]") => Ok(Value::Array(Vec::new())),
        _ => Err(TemplateError(format!("error calling slice: can't slice {}", display(value)))),
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    let (a, b) = (native::plain(a), native::plain(b));
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn compare(name: &str, a: &Value, b: &Value) -> Outcome {
    if name == "ne" {
        return Ok((!equal(a, b)).into());
    }
    let (a, b) = (native::plain(a), native::plain(b));
    let order = match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b)),
    };
    let order =
        order.ok_or_else(|| TemplateError(format!("error calling {name}: incompatible types for comparison")))?;
    Ok(match name {
        "lt" => order.is_lt(),
        "le" => order.is_le(),
        "gt" => order.is_gt(),
        _ => order.is_ge(),
    }
    .into())
}

/// Go's `Sprint`: a space only between two operands that are both not strings.
fn print(arguments: &[Value]) -> String {
    let mut out = String::new();
    for (at, value) in arguments.iter().enumerate() {
        let both_plain = at > 0 && !value.is_string() && !arguments[at - 1].is_string();
        if both_plain {
            out.push(' ');
        }
        out.push_str(&display(value));
    }
    out
}

fn printf(format: &str, arguments: &[Value]) -> Result<String, TemplateError> {
    let mut out = String::new();
    let mut arguments = arguments.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = String::new();
        while let Some(c) = chars.next_if(|c| "-+ 0#.".contains(*c) || c.is_ascii_digit()) {
            spec.push(c);
        }
        match chars.next() {
            Some('%') => out.push('%'),
            Some(verb) => match arguments.next() {
                Some(value) => out.push_str(&verb_text(verb, &spec, value)?),
                None => out.push_str(&format!("%!{verb}(MISSING)")),
            },
            None => return Err(TemplateError("printf: the format ends in %".into())),
        }
        check_text("printf", out.len())?;
    }
    Ok(out)
}

fn verb_text(verb: char, spec: &str, value: &Value) -> Result<String, TemplateError> {
    let (flags_width, precision) = spec.split_once('.').map_or((spec, None), |(w, p)| (w, p.parse::<usize>().ok()));
    check_width("printf", precision.unwrap_or(0))?;
    let left = flags_width.contains('-');
    let digits = flags_width.trim_start_matches(['-', '+', ' ', '#']);
    let zero = digits.starts_with('0') && !left;
    let width = digits.parse::<usize>().unwrap_or(0);
    check_width("printf", width)?;
    let value = if matches!(verb, 's' | 'v' | 'q') { value } else { native::plain(value) };
    let body = match verb {
        'q' => format!("{:?}", display(value)),
        'x' => value.as_u64().map_or_else(|| display(value), |n| format!("{n:x}")),
        'f' | 'e' | 'g' => format!("{:.*}", precision.unwrap_or(6), value.as_f64().unwrap_or(0.0)),
        'T' => "interface {}".into(),
        _ => match precision {
            Some(count) => display(value).chars().take(count).collect(),
            None => display(value),
        },
    };
    let missing = width.saturating_sub(body.chars().count());
    Ok(match (left, zero) {
        (true, _) => format!("{body}{}", " ".repeat(missing)),
        (false, true) => format!("{}{body}", "0".repeat(missing)),
        (false, false) => format!("{}{body}", " ".repeat(missing)),
    })
}
