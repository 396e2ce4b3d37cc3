//! What the user writes behind a flag, turned into the model's types.
//!
//! Pure: text in, value or a sentence with the accepted form out. The command line and stack files share these parsers,
//! so that both mean the same. clap puts the flag's name and the refused value in front of the sentence.

pub(crate) mod dotenv;
pub(crate) mod duration;
pub(crate) mod file_ref;
pub(crate) mod filter;
pub(crate) mod key_value;
pub(crate) mod linux;
pub(crate) mod mount;
pub(crate) mod network;
pub(crate) mod pattern;
pub(crate) mod port;
pub(crate) mod quantity;
pub(crate) mod resolver;
pub(crate) mod words;

/// Why a value is refused, with the form that is accepted.
pub(crate) type Refusal = String;

/// Cuts `a=b,"c=d,e"` at its commas, as Docker's long forms are written (one CSV record).
pub(crate) fn csv_fields(text: &str) -> Result<Vec<String>, Refusal> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                push(&mut fields, '"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => push(&mut fields, c),
        }
    }
    if quoted { Err("a quote is not closed".into()) } else { Ok(fields) }
}

fn push(fields: &mut [String], c: char) {
    if let Some(last) = fields.last_mut() {
        last.push(c);
    }
}

/// `key=value` of a long form; the key in lower case.
pub(crate) fn long_form(text: &str) -> Result<Vec<(String, Option<String>)>, Refusal> {
    let fields = csv_fields(text)?;
    Ok(fields
        .into_iter()
        .map(|field| match field.split_once('=') {
            Some((key, value)) => (key.trim().to_lowercase(), Some(value.to_owned())),
            None => (field.trim().to_lowercase(), None),
        })
        .collect())
}

/// The same for a form in which each key stands once, except those in `lists`.
pub(crate) fn long_form_once(text: &str, lists: &[&str]) -> Result<Vec<(String, Option<String>)>, Refusal> {
    let fields = long_form(text)?;
    for (at, (key, _)) in fields.iter().enumerate() {
        if !lists.contains(&key.as_str()) && fields[..at].iter().any(|(other, _)| other == key) {
            return Err(format!("{key:?} is there twice: leave one out"));
        }
    }
    Ok(fields)
}

/// Go's words for booleans.
pub(crate) fn is_true(text: &str) -> Result<bool, Refusal> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}

/// A flag that may stand alone: `readonly`, `readonly=true`.
pub(crate) fn boolean(key: &str, value: Option<&str>) -> Result<bool, Refusal> {
    match value.map(str::to_lowercase).as_deref() {
        None | Some("true" | "1" | "t") => Ok(true),
        Some("false" | "0" | "f") => Ok(false),
        Some(other) => Err(format!("{key}: {other:?} is neither true nor false")),
    }
}
