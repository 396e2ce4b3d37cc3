//! The events of a YAML text, from libyaml: Docker's client reads with a port of the same code, so that what it takes
//! and what it says of mistakes is the same here. The one place that touches the library's pointers.
#![allow(unsafe_code)]

use std::{
    borrow::Cow,
    ffi::{CStr, c_char},
    mem::MaybeUninit,
    ops::Range,
};

use libyaml_rs as yaml;

/// What the parser came upon. Tags are written out: `tag:yaml.org,2002:int` for `!!int`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    Scalar { value: String, is_plain: bool, tag: Option<String>, anchor: Option<String> },
    ListStart { anchor: Option<String> },
    ListEnd,
    MapStart { anchor: Option<String> },
    MapEnd,
    Alias(String),
    DocumentStart,
    DocumentEnd,
    End,
}

/// What libyaml says is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) words: String,
    pub(super) offset: usize,
    /// Of what was being read, such as the bracket that nobody closed.
    pub(super) began: Option<usize>,
}

/// A parser of one text.
pub(super) struct Events<'a> {
    parser: Box<MaybeUninit<yaml::yaml_parser_t>>,
    text: &'a str,
}

impl<'a> Events<'a> {
    /// The text has no byte order mark.
    pub(super) fn of(text: &'a str) -> Self {
        let mut parser = Box::new(MaybeUninit::<yaml::yaml_parser_t>::uninit());
        // SAFETY: `initialize` writes the whole structure, which then stays where it is until `drop`. The text outlives
        // it. `initialize` fails only when there is no memory, which ends the process.
        unsafe {
            let parser = parser.as_mut_ptr();
            let _ = yaml::yaml_parser_initialize(parser);
            yaml::yaml_parser_set_encoding(parser, yaml::YAML_UTF8_ENCODING);
            yaml::yaml_parser_set_input_string(parser, text.as_ptr(), text.len() as u64);
        }
        Self { parser, text }
    }

    /// The next event and the bytes that it is made of. Nothing may be asked for after a problem or the end.
    pub(super) fn next(&mut self) -> Result<(Event, Range<usize>), Problem> {
        loop {
            let mut event = MaybeUninit::<yaml::yaml_event_t>::uninit();
            // SAFETY: the parser was initialised; `parse` writes the event when it does not fail.
            if unsafe { yaml::yaml_parser_parse(self.parser.as_mut_ptr(), event.as_mut_ptr()) }.fail {
                return Err(self.problem());
            }
            // SAFETY: `parse` has written it; its strings end with a zero and are ours until `delete`.
            let (known, start, end) = unsafe {
                let event = event.assume_init_mut();
                let known = known(event);
                let marks = (event.start_mark.index, event.end_mark.index);
                yaml::yaml_event_delete(event);
                (known, marks.0, marks.1)
            };
            if let Some(known) = known {
                return Ok((known, self.offset(start)..self.offset(end)));
            }
        }
    }

    fn offset(&self, index: u64) -> usize {
        let index = usize::try_from(index).unwrap_or(usize::MAX).min(self.text.len());
        (0..=index).rev().find(|at| self.text.is_char_boundary(*at)).unwrap_or(0)
    }

    fn problem(&self) -> Problem {
        // SAFETY: initialised; what went wrong is text of the library's own, or null.
        let (words, error, at, has_context, began, byte) = unsafe {
            let parser = self.parser.assume_init_ref();
            let words =
                text(parser.problem.cast()).unwrap_or_else(|| "unknown problem parsing YAML content".to_owned());
            let has_context = !parser.context.is_null();
            (
                words,
                parser.error,
                parser.problem_mark.index,
                has_context,
                parser.context_mark.index,
                parser.problem_offset,
            )
        };
        let offset = match error {
            // A character that no text has.
            yaml::YAML_READER_ERROR => self.offset(byte),
            _ => self.offset(at),
        };
        Problem { words, offset, began: has_context.then(|| self.offset(began)) }
    }
}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        // SAFETY: initialised in `of`, deleted here only.
        unsafe { yaml::yaml_parser_delete(self.parser.as_mut_ptr()) };
    }
}

/// The event, unless it is one that says nothing.
///
/// # Safety
/// The event is one that the parser has made and nobody has deleted.
unsafe fn known(event: &yaml::yaml_event_t) -> Option<Event> {
    // SAFETY: the field of the union that the type says is the one that was written.
    unsafe {
        Some(match event.type_ {
            yaml::YAML_SCALAR_EVENT => {
                let scalar = &event.data.scalar;
                let value = std::slice::from_raw_parts(scalar.value, usize::try_from(scalar.length).unwrap_or(0));
                Event::Scalar {
                    value: String::from_utf8_lossy(value).into_owned(),
                    is_plain: scalar.style == yaml::YAML_PLAIN_SCALAR_STYLE,
                    tag: text(scalar.tag),
                    anchor: text(scalar.anchor),
                }
            }
            yaml::YAML_SEQUENCE_START_EVENT => Event::ListStart { anchor: text(event.data.sequence_start.anchor) },
            yaml::YAML_SEQUENCE_END_EVENT => Event::ListEnd,
            yaml::YAML_MAPPING_START_EVENT => Event::MapStart { anchor: text(event.data.mapping_start.anchor) },
            yaml::YAML_MAPPING_END_EVENT => Event::MapEnd,
            yaml::YAML_ALIAS_EVENT => Event::Alias(text(event.data.alias.anchor).unwrap_or_default()),
            yaml::YAML_DOCUMENT_START_EVENT => Event::DocumentStart,
            yaml::YAML_DOCUMENT_END_EVENT => Event::DocumentEnd,
            yaml::YAML_STREAM_END_EVENT => Event::End,
            _ => return None,
        })
    }
}

/// # Safety
/// Null, or a text that ends with a zero.
unsafe fn text(pointer: *const u8) -> Option<String> {
    // SAFETY: as demanded.
    let text = (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer.cast::<c_char>()) });
    text.map(CStr::to_string_lossy).map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Result<Vec<(Event, &str)>, Problem> {
        let mut events = Events::of(text);
        let mut found = Vec::new();
        loop {
            let (event, range) = events.next()?;
            if event == Event::End {
                return Ok(found);
            }
            found.push((event, &text[range]));
        }
    }

    #[test]
    fn events_know_their_bytes() {
        let found = all("é: &a 'ü'\nb: [!!int 5, *a]\n").unwrap();
        let texts: Vec<&str> = found.iter().map(|(_, text)| *text).collect();
        assert_eq!(texts, ["", "", "é", "&a 'ü'", "b", "[", "!!int 5", "*a", "]", "", ""]);
        assert_eq!(found[7].0, Event::Alias("a".into()));
        let Event::Scalar { tag, value, is_plain, .. } = &found[6].0 else { panic!("{found:?}") };
        assert_eq!((tag.as_deref(), value.as_str(), *is_plain), (Some("tag:yaml.org,2002:int"), "5", true));
    }

    #[test]
    fn problems_are_told_in_the_words_of_the_library() {
        for (text, words, offset, began) in [
            ("a: [b\n", "did not find expected ',' or ']'", 6, Some(3)),
            ("a: b\n c: d\n", "mapping values are not allowed in this context", 7, None),
            ("é: \u{7}\n", "control characters are not allowed", 4, None),
            ("a:\n\tb: c\n", "found character that cannot start any token", 3, Some(3)),
        ] {
            let problem = all(text).unwrap_err();
            assert_eq!(problem, Problem { words: words.into(), offset, began }, "{text:?}");
        }
    }
}
