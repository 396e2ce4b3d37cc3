//! A list: as a table, as JSON lines, or through a template.

use serde_json::{Map, Value};

use orch_template::{Template, TemplateError};

pub(crate) type Row = Map<String, Value>;

/// Spaces between columns, and the least width of a column with them.
const PADDING: usize = 3;
const MIN_WIDTH: usize = 10;

/// What a list command shows unless `--format` says otherwise.
pub(crate) struct Listing<'a> {
    /// Template of one line, cells separated by `\t`.
    pub(crate) default: &'a str,
    /// Field to heading, for every field that a template may name.
    pub(crate) headings: &'a [(&'a str, &'a str)],
    /// What `-q` shows.
    pub(crate) quiet: &'a str,
}

/// The flags that every list has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shape {
    pub(crate) format: Option<String>,
    pub(crate) quiet: bool,
}

impl Listing<'_> {
    pub(crate) fn print(&self, shape: &Shape, rows: &[Row]) -> Result<(), TemplateError> {
        print!("{}", self.render(shape, rows)?);
        Ok(())
    }

    pub(crate) fn render(&self, shape: &Shape, rows: &[Row]) -> Result<String, TemplateError> {
        // As with Docker, an empty format is none.
        let format = shape.format.as_deref().map(str::trim).filter(|format| !format.is_empty()).unwrap_or("table");
        match format {
            "json" => Ok(rows.iter().map(|row| format!("{}\n", Value::Object(fields(row)))).collect()),
            "table" if shape.quiet => self.lines(&format!("{{{{.{}}}}}", self.quiet), rows),
            "table" => self.table(self.default, rows),
            _ => match format.strip_prefix("table") {
                Some(template) if template.starts_with([' ', '\t', '\\']) => {
                    self.table(&unescape(template.trim_start()), rows)
                }
                _ => self.lines(&unescape(format), rows),
            },
        }
    }

    fn lines(&self, template: &str, rows: &[Row]) -> Result<String, TemplateError> {
        let template = Template::parse(template)?;
        rows.iter().map(|row| Ok(template.render(&Value::Object(row.clone()))? + "\n")).collect()
    }

    fn table(&self, template: &str, rows: &[Row]) -> Result<String, TemplateError> {
        let template = Template::parse(template)?;
        let mut headings: Row = self.headings.iter().map(|(field, text)| ((*field).into(), (*text).into())).collect();
        for (field, value) in rows.iter().flatten() {
            let Value::Object(keys) = value else { continue };
            if let Value::Object(known) = headings.entry(field).or_insert_with(|| Row::new().into()) {
                known.extend(keys.keys().map(|key| (key.clone(), key.as_str().into())));
            }
        }
        let mut lines = vec![template.render(&Value::Object(headings))?];
        for row in rows {
            lines.push(template.render(&Value::Object(row.clone()))?);
        }
        Ok(align(&lines))
    }
}

/// Labels as a row's `Label`, which templates ask by key: `{{.Label "a"}}`.
pub(crate) fn by_key<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Value {
    Value::Object(labels.into_iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect())
}

/// Without what templates ask by key (`{{.Label "a"}}`): for Docker that is none of a row's fields.
fn fields(row: &Row) -> Row {
    row.iter().filter(|(_, value)| !value.is_object()).map(|(field, value)| (field.clone(), value.clone())).collect()
}

/// `\t` and `\n` typed in a shell.
fn unescape(format: &str) -> String {
    format.replace("\\t", "\t").replace("\\n", "\n")
}

/// Aligns tab-separated cells; the last cell of a line is not padded.
pub(crate) fn align(lines: &[String]) -> String {
    let rows: Vec<Vec<&str>> = lines.iter().map(|line| line.split('\t').collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter(|row| column + 1 < row.len()).map(|row| row[column].chars().count());
        cells.max().map_or(0, |widest| (widest + PADDING).max(MIN_WIDTH))
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let padding = if column + 1 < row.len() { widths[column].saturating_sub(cell.chars().count()) } else { 0 };
            out.push_str(cell);
            out.extend(std::iter::repeat_n(' ', padding));
        }
        out.push('\n');
    }
    out
}

/// A row from fields and values.
pub(crate) fn row<const N: usize>(fields: [(&str, Value); N]) -> Row {
    fields.into_iter().map(|(field, value)| (field.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: Listing<'static> = Listing {
        default: "{{.ID}}\t{{.Name}}\t{{.Ports}}",
        headings: &[("ID", "ID"), ("Name", "NAME"), ("Ports", "PORTS")],
        quiet: "ID",
    };

    fn check(format: Option<&str>, quiet: bool, expected: &str) {
        let rows = [("1", "web", ""), ("2", "longer-than-ten", "*:80->80/tcp")]
            .map(|(id, name, ports)| row([("ID", id.into()), ("Name", name.into()), ("Ports", ports.into())]));
        let shape = Shape { format: format.map(Into::into), quiet };
        assert_eq!(LISTING.render(&shape, &rows).as_deref(), Ok(expected));
    }

    #[test]
    fn tables_are_aligned_as_dockers() {
        check(
            None,
            false,
            "ID        NAME              PORTS\n1         web               \n2         longer-than-ten   *:80->80/tcp\n",
        );
        check(None, true, "1\n2\n");
        check(Some(""), true, "1\n2\n");
        check(
            Some("table {{.Name}}\\t{{.ID}}"),
            false,
            "NAME              ID\nweb               1\nlonger-than-ten   2\n",
        );
        check(Some("{{.Name}}={{.ID}}"), true, "web=1\nlonger-than-ten=2\n");
        check(
            Some("json"),
            false,
            "{\"ID\":\"1\",\"Name\":\"web\",\"Ports\":\"\"}\n{\"ID\":\"2\",\"Name\":\"longer-than-ten\",\"Ports\":\"*:80->80/tcp\"}\n",
        );
    }

    #[test]
    fn an_unknown_field_is_named() {
        let shape = Shape { format: Some("{{.Nope}}".into()), quiet: false };
        let error = LISTING.render(&shape, &[row([("ID", "1".into())])]).unwrap_err();
        assert!(error.to_string().contains("Nope"), "{error}");
    }
}
